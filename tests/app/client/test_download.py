"""A result's files in a folder: whole, gone on with, and never over somebody else's."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.client import download
from app.client.download import Target, fetch_file, safe_name
from app.client.errors import Refused
from app.client.service import Handle, Service
from tests.app.client.conftest import Served
from tests.app.conftest import MODE, submit

CONTENT = bytes(n % 253 for n in range(500_000))


@pytest.fixture
def handle(served: Served) -> Handle:
    """A request that ended with two files of one name and one field that is no file."""
    handle = Handle(submit(served.database), MODE["endpoint"])
    folder = served.settings.data_dir
    body = {
        "lora_file": served.store("lora.safetensors", CONTENT, folder),
        "other": {**served.store("x", b"other", folder), "file_name": "lora.safetensors"},
        "video": None,
        "seed": 3,
    }
    served.complete(served.train(), body)
    return handle


def fetched(service: Service, handle: Handle, folder: Path) -> dict[str, Path]:
    result, units = service.result(handle)
    assert units == 100
    return Target(folder).fetch(service, handle, result, lambda name, done, total: None)


def test_every_file_under_its_name(service: Service, handle: Handle, tmp_path: Path) -> None:
    found = fetched(service, handle, tmp_path / "out")
    assert found["lora_file"].name == "lora.safetensors"
    assert found["lora_file"].read_bytes() == CONTENT
    assert found["other"].name == "other-lora.safetensors"
    assert found["other"].read_bytes() == b"other"
    assert set(found) == {"lora_file", "other"}


def test_again_into_the_same_folder(service: Service, handle: Handle, tmp_path: Path) -> None:
    before = fetched(service, handle, tmp_path / "out")["lora_file"].stat().st_mtime_ns
    assert fetched(service, handle, tmp_path / "out")["lora_file"].stat().st_mtime_ns == before


def test_another_requests_files_are_left_alone(
    service: Service, handle: Handle, tmp_path: Path
) -> None:
    fetched(service, handle, tmp_path / "out")
    with pytest.raises(Refused, match=f"holds the files of request {handle.request_id}"):
        Target(tmp_path / "out").claim(Handle("0" * 36, MODE["endpoint"]))


def test_a_folder_of_something_else_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(b"years of work")
    with pytest.raises(Refused, match="holds other files"):
        Target(tmp_path)


def one(service: Service, handle: Handle) -> dict[str, Any]:
    file: dict[str, Any] = service.result(handle)[0]["lora_file"]
    return file


@pytest.mark.parametrize("have", [0, 1, 300_000, len(CONTENT), len(CONTENT) + 1])
def test_what_is_there_is_gone_on_with(
    service: Service, handle: Handle, tmp_path: Path, have: int
) -> None:
    path, part = tmp_path / "lora", tmp_path / "lora.part"
    part.write_bytes((CONTENT + b"x")[:have])
    seen: list[int] = []
    fetch_file(service, one(service, handle), path, lambda name, done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert not part.exists()
    if have < len(CONTENT):
        assert seen[0] > have


def test_damage_is_seen_by_its_checksum(service: Service, handle: Handle, tmp_path: Path) -> None:
    path, part = tmp_path / "lora", tmp_path / "lora.part"
    part.write_bytes(b"y" * 1000)
    with pytest.raises(Refused, match="damaged on its way"):
        fetch_file(service, one(service, handle), path)
    assert not path.exists()
    fetch_file(service, one(service, handle), path)
    assert path.read_bytes() == CONTENT


def test_a_result_that_lies_about_a_size(service: Service, handle: Handle, tmp_path: Path) -> None:
    file = {**one(service, handle), "file_size": len(CONTENT) + 1}
    with pytest.raises(Refused, match=f"has {len(CONTENT)} bytes, not {len(CONTENT) + 1}"):
        fetch_file(service, file, tmp_path / "lora")


def test_a_url_that_does_not_hold(
    service: Service, handle: Handle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PAUSES_S", ())
    file = one(service, handle)
    file["url"] = file["url"].replace("/outputs/", "/uploads/")
    with pytest.raises(Refused, match="was not made for this"):
        fetch_file(service, file, tmp_path / "lora")


@given(st.text(max_size=20))
def test_names_stay_in_their_folder(name: str) -> None:
    safe = safe_name(name)
    assert Path(safe).name == safe
    assert not safe.startswith(".")
