"""The folder store: what dies halfway, what is damaged, what several processes do at once."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.storage.errors import ObjectDamaged
from app.storage.local import LocalStorage
from app.storage.signing import SECRET_BYTES, UrlSigner, stored_secret
from tests.app.storage.conftest import EXPIRY_S, PUBLIC_URL, Clock

MakeFile = Callable[[bytes], Path]


def test_links_instead_of_copies(local: LocalStorage, file: MakeFile, tmp_path: Path) -> None:
    source = file(b"weights")
    local.put_file("a/b", source)
    local.fetch("a/b", tmp_path / "back")
    assert source.stat().st_ino == (tmp_path / "back").stat().st_ino


def test_copies_where_links_do_not_reach(tmp_path: Path, signer: UrlSigner, file: MakeFile) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    root = shared_memory / f"reelsmith-test-{os.getpid()}"
    try:
        storage = LocalStorage(root, signer, url_expiry_s=EXPIRY_S)
        source = file(b"weights")
        storage.put_file("a/b", source)
        storage.fetch("a/b", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"weights"
        assert source.stat().st_nlink == 1
    finally:
        shutil.rmtree(root)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.write_bytes(b"WEIGHTS"), id="other bytes"),
        pytest.param(lambda path: path.write_bytes(b"weigh"), id="cut off"),
    ],
)
def test_damage_is_noticed(
    local: LocalStorage, file: MakeFile, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    local.put_file("a/b", file(b"weights"))
    damage(tmp_path / "store" / "objects" / "a" / "b")
    with pytest.raises(ObjectDamaged, match="a/b"):
        local.fetch("a/b", tmp_path / "back")
    assert list(tmp_path.glob("back*")) == []


def test_half_a_write_is_no_key(local: LocalStorage, file: MakeFile, tmp_path: Path) -> None:
    store = tmp_path / "store"
    local.put_file("a/b", file(b"weights"))
    # Killed after the facts were written and before the bytes came: the state a kill leaves.
    (store / "objects" / "a" / "b").rename(store / "incoming" / "left-behind")
    assert local.stat("a/b") is None
    os.utime(store / "incoming" / "left-behind", (0, 0))
    assert local.sweep(older_than_s=3600) == 1
    assert list((store / "incoming").iterdir()) == []


def test_sweep_leaves_what_is_being_written(local: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "store" / "incoming" / "busy").write_bytes(b"half")
    assert local.sweep(older_than_s=3600) == 0


def test_nothing_is_left_of_what_is_deleted(
    local: LocalStorage, file: MakeFile, tmp_path: Path
) -> None:
    local.put_file("requests/1/outputs/a", file(b"x"))
    local.put_file("requests/2/a", file(b"x"))
    local.delete("requests/1/outputs/a")
    local.delete_tree("requests/2")
    left = [path for path in (tmp_path / "store").rglob("*") if path.parent != tmp_path / "store"]
    assert left == []


def _write_often(root: Path, source: Path, times: int) -> None:
    storage = LocalStorage(root, UrlSigner(b"k" * 32, PUBLIC_URL), url_expiry_s=EXPIRY_S)
    for _ in range(times):
        storage.put_file("shared/key", source)


def test_processes_that_write_one_key(local: LocalStorage, file: MakeFile, tmp_path: Path) -> None:
    contents = [bytes([number]) * (10_000 + number) for number in range(2)]
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write_often, args=(tmp_path / "store", file(content), 60))
        for content in contents
    ]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        if local.stat("shared/key") is not None:
            local.fetch("shared/key", tmp_path / "back")  # raises when bytes and facts differ
            assert (tmp_path / "back").read_bytes() in contents
            reads += 1
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert reads > 0


class TestSigner:
    def test_expiry(self, signer: UrlSigner, clock: Clock) -> None:
        url = signer.read_url("a/b", expires_s=60)
        clock.now += 59
        assert signer.key_of(url) == "a/b"
        clock.now += 1
        assert signer.key_of(url) is None

    def test_another_service(self, signer: UrlSigner, clock: Clock) -> None:
        theirs = UrlSigner(b"x" * 32, PUBLIC_URL, now=clock).read_url("a/b", expires_s=60)
        assert signer.key_of(theirs) is None

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "https://elsewhere.test/files/1-2/a/b",
            f"{PUBLIC_URL}.evil.test/files/1-2/a/b",
            f"{PUBLIC_URL}/files/",
            f"{PUBLIC_URL}/files/-/a",
            f"{PUBLIC_URL}/files/99999999999999-00/a",
            f"{PUBLIC_URL}/files/²-00/a",
            f"{PUBLIC_URL}/files/2000000000-é/a",
            f"{PUBLIC_URL}/files/2000000000-00/../a",
        ],
    )
    def test_other_urls(self, signer: UrlSigner, url: str) -> None:
        assert signer.key_of(url) is None

    def test_writing_url_does_not_read(self, signer: UrlSigner) -> None:
        assert signer.key_of(signer.write_url("a/b", expires_s=60)) is None

    def test_short_secret(self) -> None:
        with pytest.raises(ValueError, match="5 bytes"):
            UrlSigner(b"short", PUBLIC_URL)

    def test_stored_secret(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "secret"
        first = stored_secret(path)
        assert len(first) == SECRET_BYTES
        assert stored_secret(path) == first
        assert path.stat().st_mode & 0o077 == 0
        assert list(path.parent.iterdir()) == [path]
