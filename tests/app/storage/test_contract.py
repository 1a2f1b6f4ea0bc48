"""What every store promises, run on a folder and on S3."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from app.storage.base import Storage
from app.storage.errors import InvalidKey, ObjectMissing
from app.storage.s3 import PART_BYTES

MakeFile = Callable[[bytes], Path]


class TestFiles:
    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"lora", id="small"),
            pytest.param(bytes(range(256)) * (PART_BYTES // 256), id="exactly one part"),
            pytest.param(b"\x00\x01\x02" * (PART_BYTES // 3 + 999), id="two parts"),
        ],
    )
    def test_comes_back_as_it_went(
        self, storage: Storage, file: MakeFile, tmp_path: Path, content: bytes
    ) -> None:
        stored = storage.put_file("outputs/1/lora.safetensors", file(content))

        assert stored.size_bytes == len(content)
        assert stored.sha256 == hashlib.sha256(content).hexdigest()
        assert storage.stat("outputs/1/lora.safetensors") == stored
        assert storage.fetch("outputs/1/lora.safetensors", tmp_path / "new" / "back") == stored
        assert (tmp_path / "new" / "back").read_bytes() == content
        assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "back"]

    def test_replaces(self, storage: Storage, file: MakeFile, tmp_path: Path) -> None:
        storage.put_file("a/b", file(b"first"), content_type="video/mp4")
        storage.put_file("a/b", file(b"the second"), content_type="application/json")

        stored = storage.fetch("a/b", tmp_path / "back")
        assert (stored.size_bytes, stored.content_type) == (10, "application/json")
        assert (tmp_path / "back").read_bytes() == b"the second"

    def test_fetch_replaces_the_target(
        self, storage: Storage, file: MakeFile, tmp_path: Path
    ) -> None:
        storage.put_file("a/b", file(b"stored"))
        (tmp_path / "back").write_bytes(b"older")
        storage.fetch("a/b", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b"stored"

    def test_missing(self, storage: Storage, tmp_path: Path) -> None:
        assert storage.stat("no/thing") is None
        with pytest.raises(ObjectMissing, match="no/thing"):
            storage.fetch("no/thing", tmp_path / "back")
        with pytest.raises(ObjectMissing):
            list(storage.open_range("no/thing"))
        assert not (tmp_path / "back").exists()

    def test_delete(self, storage: Storage, file: MakeFile) -> None:
        storage.put_file("a/b", file(b"x"))
        storage.delete("a/b")
        storage.delete("a/b")
        assert storage.stat("a/b") is None
        assert storage.list_keys("a") == []

    def test_missing_source_leaves_no_key(self, storage: Storage, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            storage.put_file("a/b", tmp_path / "nowhere")
        assert storage.stat("a/b") is None

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            pytest.param(0, None, b"0123456789", id="all"),
            pytest.param(3, 4, b"3456", id="middle"),
            pytest.param(8, None, b"89", id="to the end"),
            pytest.param(0, 0, b"", id="nothing"),
        ],
    )
    def test_open_range(
        self, storage: Storage, file: MakeFile, start: int, length: int | None, expected: bytes
    ) -> None:
        storage.put_file("digits", file(b"0123456789"))
        assert b"".join(storage.open_range("digits", start, length)) == expected

    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("video/mp4", "video/mp4"),
            ("application/json; charset=utf-8", "application/json"),
            ("text/html", "application/octet-stream"),
            ("image/svg+xml", "application/octet-stream"),
            ("application/xhtml+xml", "application/octet-stream"),
            ("video/mp4\r\nX-Evil: 1", "application/octet-stream"),
            ("", "application/octet-stream"),
            (None, "application/octet-stream"),
        ],
    )
    def test_no_type_that_a_browser_runs(
        self, storage: Storage, file: MakeFile, given: str | None, kept: str
    ) -> None:
        storage.put_file("a/b", file(b"<script>"), content_type=given)
        stored = storage.stat("a/b")
        assert stored is not None
        assert stored.content_type == kept


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/etc/passwd",
        "../secret",
        "a/../b",
        "a//b",
        "a/",
        "a/.hidden",
        "a\\b",
        "a b",
        "a\x00b",
        "a\nb",
        "ä",
        "a" * 201,
        "a/" * 300 + "a",
    ],
)
def test_keys_that_leave_the_store(storage: Storage, file: MakeFile, key: str) -> None:
    for call in (
        lambda: storage.put_file(key, file(b"x")),
        lambda: storage.fetch(key, Path("unused")),
        lambda: storage.stat(key),
        lambda: storage.delete(key),
        lambda: storage.delete_tree(key),
        lambda: storage.list_keys(key),
        lambda: storage.signed_url(key),
        lambda: list(storage.open_range(key)),
    ):
        with pytest.raises(InvalidKey):
            call()


class TestTrees:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "checkpoint"
        (folder / "rng").mkdir(parents=True)
        (folder / "adapter.safetensors").write_bytes(b"weights")
        (folder / "rng" / "torch.bin").write_bytes(b"state")
        (folder / "complete.json").write_bytes(b"{}")
        return folder

    def test_there_and_back(self, storage: Storage, folder: Path, tmp_path: Path) -> None:
        stored = storage.put_tree("checkpoints/250-1", folder, last="complete.json")
        assert [item.key for item in stored] == [
            "checkpoints/250-1/adapter.safetensors",
            "checkpoints/250-1/rng/torch.bin",
            "checkpoints/250-1/complete.json",
        ]
        back = storage.fetch_tree("checkpoints/250-1", tmp_path / "back", last="complete.json")
        assert back == stored
        assert {
            path.relative_to(tmp_path / "back").as_posix(): path.read_bytes()
            for path in (tmp_path / "back").rglob("*")
            if path.is_file()
        } == {
            "adapter.safetensors": b"weights",
            "rng/torch.bin": b"state",
            "complete.json": b"{}",
        }

    def test_without_its_marker_it_is_not_there(
        self, storage: Storage, folder: Path, tmp_path: Path
    ) -> None:
        storage.put_tree("checkpoints/250-1", folder, last="complete.json")
        storage.delete("checkpoints/250-1/complete.json")
        with pytest.raises(ObjectMissing, match=r"complete\.json"):
            storage.fetch_tree("checkpoints/250-1", tmp_path / "back", last="complete.json")

    def test_a_try_that_fails_leaves_no_marker_and_a_later_one_ends_it(
        self, storage: Storage, folder: Path
    ) -> None:
        (folder / "not a key").write_bytes(b"x")
        with pytest.raises(InvalidKey):
            storage.put_tree("checkpoints/250-1", folder, last="complete.json")
        assert storage.stat("checkpoints/250-1/complete.json") is None
        (folder / "not a key").unlink()
        assert len(storage.put_tree("checkpoints/250-1", folder, last="complete.json")) == 3

    def test_a_whole_tree_is_left_alone(self, storage: Storage, folder: Path) -> None:
        """Somebody may be reading it: it never loses its marker."""
        first = storage.put_tree("prepared/x", folder, last="complete.json")
        (folder / "adapter.safetensors").write_bytes(b"other")
        assert storage.put_tree("prepared/x", folder, last="complete.json") == []
        assert storage.stat("prepared/x/adapter.safetensors") == first[0]

    def test_marker_must_exist(self, storage: Storage, folder: Path) -> None:
        with pytest.raises(FileNotFoundError, match="missing"):
            storage.put_tree("checkpoints/250-1", folder, last="missing.json")
        assert storage.list_keys("checkpoints") == []

    def test_delete_tree_stays_below_its_prefix(self, storage: Storage, file: MakeFile) -> None:
        for key in ("requests/1/a", "requests/1/b/c", "requests/10/a", "requests/2"):
            storage.put_file(key, file(b"x"))
        storage.delete_tree("requests/1")
        storage.delete_tree("requests/1")
        assert storage.list_keys("requests") == ["requests/10/a", "requests/2"]


def test_url_names_its_key(storage: Storage, file: MakeFile) -> None:
    storage.put_file("outputs/1/lora.safetensors", file(b"weights"))
    url = storage.signed_url("outputs/1/lora.safetensors", file_name="my lora.safetensors")
    assert storage.key_of_own_url(url) == "outputs/1/lora.safetensors"
    assert storage.key_of_own_url(url.replace("/1/", "/2/")) is None
    assert storage.key_of_own_url(url.replace("my_lora", "other")) is None
    assert storage.key_of_own_url("https://elsewhere.test/outputs/1/lora.safetensors") is None
