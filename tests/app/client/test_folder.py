"""A folder as an archive: what goes in, what is said of it, and that it is always the same."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import modes
from app.client.errors import Refused
from app.client.folder import left_out, look, names_in_folder, names_in_zip, zipped
from preprocessing.names import is_system_file
from preprocessing.rules import DatasetRule
from tests.app.asking import parsed


def rule(path: str) -> DatasetRule:
    found: DatasetRule = modes.by_path(path).dataset_rule(parsed(path))
    return found


def test_hidden_files_stay_at_home(clips: Path) -> None:
    assert names_in_folder(clips) == ["cat.mp4", "cat.txt", "more/dog.MOV", "notes.psd"]
    with zipped(clips, names_in_folder(clips)) as path:
        assert path.parent == clips.parent
        assert names_in_zip(path) == names_in_folder(clips)
        with zipfile.ZipFile(path) as archive:
            assert archive.read("more/dog.MOV") == b"b" * 2000
            assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
    assert not path.exists()


def test_the_same_folder_makes_the_same_bytes(clips: Path) -> None:
    made = []
    for _ in range(2):
        with zipped(clips, names_in_folder(clips)) as path:
            made.append(path.read_bytes())
        (clips / "cat.mp4").touch()
    assert made[0] == made[1]


def test_progress_ends_at_all(clips: Path) -> None:
    seen: list[tuple[int, int]] = []
    with zipped(clips, names_in_folder(clips), lambda done, total: seen.append((done, total))):
        assert seen[-1] == (5006, 5006)


LOOKS = {
    "clips and captions": ("t2v", ["a.mp4", "a.txt", "b.mov", "B.TXT"], "2 videos, 2 captions", []),
    "images": ("t2v", ["a.png"], "1 image", ["a.png: without a caption"]),
    "others": ("t2v", ["a.mp4", "a.txt", "a.psd"], "1 video, 1 caption", ["a.psd: not a kind"]),
    "orphan caption": (
        "t2v",
        ["a.mp4", "a.txt", "x/a.txt"],
        "1 video, 2 captions",
        ["x/a.txt: a caption without a clip"],
    ),
    "mixed": ("t2v", ["a.mp4", "a.txt", "a.png"], "1 video, 1 image, 1 caption", ["videos and"]),
    "images refused": ("extend-suffix", ["a.mp4", "a.txt", "b.png"], "1 video", ["b.png: not"]),
    "masks": ("inpaint", ["a.webm", "a_mask.png", "x/a.txt"], "1 video, 1 mask, 1 caption", []),
    "no mask": ("inpaint", ["a.mp4", "a.txt"], "1 video", ["a.mp4: without a mask"]),
    "orphan mask": (
        "inpaint",
        ["a.mp4", "a.txt", "a_mask.png", "b_mask.mp4"],
        "1 video, 2 masks",
        ["b_mask.mp4: a mask without"],
    ),
    "mask elsewhere": ("t2v", ["a.mp4", "a.txt", "a_mask.mp4"], "2 videos", ["a_mask.mp4: with"]),
    "nothing": ("t2v", [".a.mp4"], "no clips", []),
}


@pytest.mark.parametrize(("mode", "names", "says", "warns"), LOOKS.values(), ids=LOOKS)
def test_a_look(mode: str, names: list[str], says: str, warns: list[str]) -> None:
    found = look(names, rule(mode))
    assert found.summary().startswith(says)
    assert len(found.warnings) == len(warns)
    for warning, begins in zip(found.warnings, warns, strict=True):
        assert warning.startswith(begins)


def test_many_names_are_counted() -> None:
    (warning,) = look([f"{n:02}.mp4" for n in range(12)], None).warnings
    assert "04.mp4 and 7 more" in warning


@given(st.lists(st.text("aA._/$~", max_size=4), max_size=4).map("/".join))
def test_hidden_means_what_the_service_means(name: str) -> None:
    assert left_out(name) == is_system_file(name)


def test_what_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    with pytest.raises(Refused, match="neither a folder nor a zip"):
        names_in_zip(tmp_path / "a.rar")
