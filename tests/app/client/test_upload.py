"""Uploads in parts: whole at the end, and gone on with after a break."""

from pathlib import Path

import httpx
import pytest

from app.client import upload as uploading
from app.client.errors import Refused, Unreachable
from app.client.service import Service
from app.client.upload import upload
from tests.app.client.conftest import KEY, Served, serving

PART = 1000


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploading, "PART_BYTES", PART)
    monkeypatch.setattr(uploading, "CHUNK_BYTES", 300)
    monkeypatch.setattr(uploading, "PAUSES_S", (0.0,))


def read(url: str) -> bytes:
    return httpx.get(url, trust_env=False).content


def file(tmp_path: Path, num_bytes: int) -> Path:
    path = tmp_path / "clips.zip"
    path.write_bytes(bytes(n % 251 for n in range(num_bytes)))
    return path


@pytest.mark.parametrize("num_bytes", [0, 1, PART - 1, PART, PART + 1, 3 * PART + 7])
def test_every_size(service: Service, tmp_path: Path, num_bytes: int) -> None:
    path = file(tmp_path, num_bytes)
    seen: list[tuple[int, int]] = []
    url = upload(service, path, on_bytes=lambda done, total: seen.append((done, total)))
    assert read(url) == path.read_bytes()
    assert seen[-1] == (num_bytes, num_bytes)
    assert seen == sorted(seen)
    assert url.endswith("/clips.zip")


def break_at(service: Service, path: Path, num_bytes: int) -> None:
    """An upload that is interrupted when more than so many bytes were sent."""

    def interrupt(done: int, total: int) -> None:
        if done > num_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        upload(service, path, on_bytes=interrupt)


def sent_parts(served: Served) -> list[str]:
    return [key.rpartition("/")[2] for key in served.storage.list_keys("parts")]


def test_what_arrived_is_not_sent_again(served: Served, service: Service, tmp_path: Path) -> None:
    path = file(tmp_path, 3 * PART + 7)
    break_at(service, path, 2 * PART)
    assert sent_parts(served) == ["00001", "00002"]
    seen: list[int] = []
    url = upload(service, path, on_bytes=lambda done, total: seen.append(done))
    assert seen[:2] == [PART, 2 * PART], "no steps inside of parts that are there"
    assert read(url) == path.read_bytes()
    assert sent_parts(served) == []


def test_a_changed_part_is_sent_again(service: Service, tmp_path: Path) -> None:
    path = file(tmp_path, 2 * PART + 1)
    break_at(service, path, 2 * PART)
    changed = b"x" + path.read_bytes()[1:]
    path.write_bytes(changed)
    assert read(upload(service, path)) == changed


def test_parts_that_are_gone_are_sent_again(
    served: Served, service: Service, tmp_path: Path
) -> None:
    path = file(tmp_path, 2 * PART + 1)
    break_at(service, path, 2 * PART)
    served.storage.delete_tree("parts")
    assert read(upload(service, path)) == path.read_bytes()


def test_the_note_is_for_its_owners_eyes_and_goes(service: Service, tmp_path: Path) -> None:
    path = file(tmp_path, 2 * PART)
    break_at(service, path, PART)
    (note,) = (tmp_path / "cache" / "reelsmith" / "uploads").iterdir()
    assert note.stat().st_mode & 0o077 == 0
    upload(service, path)
    assert not note.exists()


def test_through_a_restart_of_the_service(served: Served, service: Service, tmp_path: Path) -> None:
    path = file(tmp_path, 2 * PART)
    stopped = False

    def stop_once(done: int, total: int) -> None:
        nonlocal stopped
        if done >= PART and not stopped:
            stopped = True
            served.stop()

    with pytest.raises(Unreachable, match="can't be reached"):
        upload(service, path, on_bytes=stop_once)
    served.start()
    assert read(upload(service, path)) == path.read_bytes()


def test_more_than_the_service_takes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with (
        serving(tmp_path / "service", url, max_archive_bytes=PART) as served,
        Service(served.url) as service,
        pytest.raises(Refused, match="at most 1000 bytes"),
    ):
        upload(service, file(tmp_path, PART + 1))


def test_with_a_wrong_key(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    with (
        serving(tmp_path / "service", url, api_keys=KEY) as served,
        Service(served.url, "wrong") as service,
        pytest.raises(Refused, match="REELSMITH_KEY"),
    ):
        upload(service, file(tmp_path, 1))
