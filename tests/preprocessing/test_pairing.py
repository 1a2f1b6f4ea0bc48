"""Which file belongs to which, and what is left over."""

import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import DatasetRuleError
from preprocessing.names import folded, shown
from preprocessing.pairing import Pairing, pair
from preprocessing.rules import DatasetRule
from preprocessing.source import Member

RULE = DatasetRule(num_frames=9, frame_rate=24, width=64, height=64)
VIDEOS_ONLY = RULE.model_copy(update={"image_extensions": ()})


def members(*names: str) -> list[Member]:
    return [Member(name, folded(name), 10, index) for index, name in enumerate(names)]


def pairs_of(pairing: Pairing) -> dict[str, str | None]:
    return {p.clip.name: p.caption.name if p.caption else None for p in pairing.pairs}


PAIRED: dict[str, tuple[list[str], dict[str, str | None]]] = {
    "by base name": (["a.mp4", "a.txt", "b.mov"], {"a.mp4": "a.txt", "b.mov": None}),
    "all video kinds": (
        ["a.mp4", "b.mov", "c.avi", "d.mkv"],
        {"a.mp4": None, "b.mov": None, "c.avi": None, "d.mkv": None},
    ),
    "all image kinds": (
        ["a.png", "b.jpg", "c.jpeg", "c.txt"],
        {"a.png": None, "b.jpg": None, "c.jpeg": "c.txt"},
    ),
    "Z11 any case": (["clip.MP4", "CLIP.txt"], {"clip.MP4": "CLIP.txt"}),
    "Z12 any Unicode form": (
        ["\u00e9.mp4", "e\u0301.txt"],
        {"\u00e9.mp4": "e\u0301.txt"},
    ),
    "Z13 folders are distinct": (
        ["x/a.mp4", "x/a.txt", "y/a.mp4", "a.mp4", "a.txt"],
        {"x/a.mp4": "x/a.txt", "y/a.mp4": None, "a.mp4": "a.txt"},
    ),
    "dots in the name": (
        ["a.v1.mp4", "a.v1.txt", "a.v2.mp4", "a.txt"],
        {"a.v1.mp4": "a.v1.txt", "a.v2.mp4": None},
    ),
    "two kinds share a caption": (
        ["a.mp4", "a.mov", "a.txt"],
        {"a.mp4": "a.txt", "a.mov": "a.txt"},
    ),
    "Z21 system files": (
        ["a.mp4", "__MACOSX/._a.mp4", "__macosx/b.mp4", "._a.txt", ".DS_Store", "x/Thumbs.db"],
        {"a.mp4": None},
    ),
    "hidden folders": ([".cache/a.mp4", "a.mp4"], {"a.mp4": None}),
}


@pytest.mark.parametrize("case", PAIRED)
def test_paired(case: str) -> None:
    names, expected = PAIRED[case]
    assert pairs_of(pair(members(*names), RULE)) == expected


IGNORED = {
    "orphan caption": ("b.txt", "no clip in this folder"),
    "caption of another folder": ("x/a.txt", "no clip in this folder"),
    "unknown kind": ("a.webm", "(.webm)"),
    "no extension": ("README", "(no extension)"),
    "Z25 archive inside": ("inner.ZIP", "not opened"),
    "hidden": (".a.mp4", "hidden or system"),
    "macOS": ("__MACOSX/a.mp4", "hidden or system"),
    "Z15 escapes in the name": ("b\x1b[2J\n.txt", "no clip in this folder"),
}


@pytest.mark.parametrize("case", IGNORED)
def test_ignored_with_a_reason(case: str) -> None:
    name, reason = IGNORED[case]
    (ignored,) = pair(members("a.mp4", name), RULE).ignored
    assert ignored.name == shown(name)
    assert ignored.name.isprintable()
    assert reason in ignored.reason


def test_m51_mixed() -> None:
    with pytest.raises(DatasetRuleError) as caught:
        pair(members("x/a.mp4", "b.mp4", "c.png", "d.png"), RULE)
    assert caught.value.message == (
        "The archive mixes videos and images (x/a.mp4, c.png). Send only videos or only images."
    )
    assert caught.value.ctx == {"video": "x/a.mp4", "image": "c.png"}


@pytest.mark.parametrize("names", [("a.png",), ("a.mp4", "b.JPG")], ids=["only images", "mixed"])
def test_m51_images_where_none_are_taken(names: tuple[str, ...]) -> None:
    with pytest.raises(DatasetRuleError, match="is an image, and this training takes videos only"):
        pair(members(*names), VIDEOS_ONLY)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "no usable media"),
        (("a.txt", "README"), "no usable media"),
        (("__MACOSX/a.mp4",), "no usable media"),
        (("inner.zip",), "Archives inside the archive are not opened"),
    ],
    ids=["Z23 nothing", "only captions", "only system files", "Z25 zip in zip"],
)
def test_no_usable_media(names: tuple[str, ...], words: str) -> None:
    with pytest.raises(DatasetRuleError, match=words) as caught:
        pair(members(*names), VIDEOS_ONLY)
    assert caught.value.type == "archive_file_count_below_minimum"
    assert caught.value.ctx == {
        "min_count": 1,
        "provided_count": 0,
        "supported_extensions": [".mp4", ".mov", ".avi", ".mkv"],
    }


_STEM = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
_FOLDER = st.sampled_from(["", "day/", "day/cut/", "Nacht/"])


@given(clips=st.sets(st.tuples(_FOLDER, _STEM), min_size=1, max_size=8), data=st.data())
def test_every_clip_finds_its_caption_and_no_other(
    clips: set[tuple[str, str]], data: st.DataObject
) -> None:
    """Captions written in another case or normal form, in any order, find their clip."""
    by_key = {folded(f"{folder}{stem}"): f"{folder}{stem}" for folder, stem in clips}
    captioned = data.draw(st.sets(st.sampled_from(sorted(by_key))))
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    names = [f"{name}.mp4" for name in by_key.values()]
    names += [unicodedata.normalize(form, f"{by_key[key]}.TXT") for key in captioned]
    pairing = pair(members(*data.draw(st.permutations(names))), RULE)
    found = pairs_of(pairing)
    assert set(found) == {f"{name}.mp4" for name in by_key.values()}
    assert pairing.ignored == ()
    for clip, caption in found.items():
        stem = str(PurePosixPath(clip).with_suffix(""))
        assert (caption is not None) == (folded(stem) in captioned)
        if caption is not None:
            assert folded(caption[:-4]) == folded(stem)


@given(st.lists(st.text(min_size=1, max_size=20), max_size=12))
def test_every_file_is_accounted_for(names: list[str]) -> None:
    given = members("clip.mp4", *names)
    try:
        pairing = pair(given, RULE)
    except DatasetRuleError:
        return
    used = {m.index for p in pairing.pairs for m in (p.clip, p.caption) if m}
    assert len(used) + len(pairing.ignored) == len(given)
