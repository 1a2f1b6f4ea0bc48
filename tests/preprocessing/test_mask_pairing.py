"""Which mask belongs to which clip; every trouble named at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import DatasetRuleError
from preprocessing.names import folded
from preprocessing.pairing import pair
from preprocessing.rules import DatasetRule
from preprocessing.source import Member

RULE = DatasetRule(
    num_frames=9,
    frame_rate=24,
    width=64,
    height=64,
    video_extensions=(".mp4", ".mov", ".webm"),
    image_extensions=(),
    masks=True,
    unique_names=True,
)
BY_FOLDER = RULE.model_copy(update={"unique_names": False})


def members(*names: str) -> list[Member]:
    return [Member(name, folded(name), 10, index) for index, name in enumerate(names)]


def masks_in(names: list[str], rule: DatasetRule) -> dict[str, str]:
    pairing = pair(members(*names), rule)
    return {p.clip.name: p.mask.name for p in pairing.pairs if p.mask is not None}


PAIRED: dict[str, tuple[DatasetRule, list[str], dict[str, str]]] = {
    "every kind": (
        RULE,
        [
            *(f"{n}.mp4" for n in "abcdefg"),
            "a_mask.png",
            "b_mask.jpg",
            "c_mask.jpeg",
            "d_mask.bmp",
            "e_mask.webp",
            "f_mask.mp4",
            "g_mask.webm",
        ],
        {
            "a.mp4": "a_mask.png",
            "b.mp4": "b_mask.jpg",
            "c.mp4": "c_mask.jpeg",
            "d.mp4": "d_mask.bmp",
            "e.mp4": "e_mask.webp",
            "f.mp4": "f_mask.mp4",
            "g.mp4": "g_mask.webm",
        },
    ),
    "any case": (RULE, ["Clip.MP4", "CLIP_Mask.PNG"], {"Clip.MP4": "CLIP_Mask.PNG"}),
    "any Unicode form": (
        RULE,
        ["\u00e9.mp4", "e\u0301_mask.png"],
        {"\u00e9.mp4": "e\u0301_mask.png"},
    ),
    "unique names: any folder": (
        RULE,
        ["clips/a.mp4", "m/a_mask.png"],
        {"clips/a.mp4": "m/a_mask.png"},
    ),
    "by folder": (
        BY_FOLDER,
        ["x/a.mp4", "x/a_mask.png", "y/a.mp4", "y/a_mask.mov"],
        {"x/a.mp4": "x/a_mask.png", "y/a.mp4": "y/a_mask.mov"},
    ),
    "by folder, two clips of one name share it": (
        BY_FOLDER,
        ["a.mp4", "a.mov", "a_mask.png"],
        {"a.mp4": "a_mask.png", "a.mov": "a_mask.png"},
    ),
    "a name with dots": (RULE, ["a.b.mp4", "a.b_mask.png"], {"a.b.mp4": "a.b_mask.png"}),
    "system files don't count": (
        RULE,
        ["a.mp4", "a_mask.png", "__MACOSX/._a.mp4", "__MACOSX/._a_mask.png"],
        {"a.mp4": "a_mask.png"},
    ),
}


@pytest.mark.parametrize("case", PAIRED)
def test_pairs(case: str) -> None:
    rule, names, expected = PAIRED[case]
    assert masks_in(names, rule) == expected


def test_masks_are_neither_clips_nor_ignored() -> None:
    pairing = pair(members("a.mp4", "a_mask.mp4", "a.txt", "a_mask.txt", "notes.md"), RULE)
    assert [(p.clip.name, p.caption and p.caption.name) for p in pairing.pairs] == [
        ("a.mp4", "a.txt")
    ]
    assert {ignored.name for ignored in pairing.ignored} == {"a_mask.txt", "notes.md"}


def test_without_masks_the_name_means_nothing() -> None:
    pairing = pair(members("a.mp4", "a_mask.mp4"), RULE.model_copy(update={"masks": False}))
    assert [(p.clip.name, p.mask) for p in pairing.pairs] == [("a.mp4", None), ("a_mask.mp4", None)]


REFUSED: dict[str, tuple[DatasetRule, list[str], dict[str, list[str]]]] = {
    "no mask": (RULE, ["a.mp4", "b.mp4", "b_mask.png"], {"clips_without_mask": ["a.mp4"]}),
    "no mask at all": (RULE, ["a.mp4", "b.mp4"], {"clips_without_mask": ["a.mp4", "b.mp4"]}),
    "in another folder": (
        BY_FOLDER,
        ["x/a.mp4", "y/a_mask.png"],
        {"clips_without_mask": ["x/a.mp4"], "masks_without_clip": ["y/a_mask.png"]},
    ),
    "an orphan": (
        RULE,
        ["a.mp4", "a_mask.png", "b_mask.png", "c_mask.mp4"],
        {"masks_without_clip": ["b_mask.png", "c_mask.mp4"]},
    ),
    "a misspelt clip": (
        RULE,
        ["clip1.mp4", "clip01_mask.png"],
        {"clips_without_mask": ["clip1.mp4"], "masks_without_clip": ["clip01_mask.png"]},
    ),
    "two masks": (
        RULE,
        ["a.mp4", "a_mask.png", "a_mask.mp4"],
        {"masks_of_one_clip": ["a_mask.png", "a_mask.mp4"]},
    ),
    "two masks in folders": (
        RULE,
        ["a.mp4", "x/a_mask.png", "y/a_mask.png"],
        {"masks_of_one_clip": ["x/a_mask.png", "y/a_mask.png"]},
    ),
    "a mask of a mask": (
        RULE,
        ["a.mp4", "a_mask.mp4", "a_mask_mask.png"],
        {"masks_without_clip": ["a_mask_mask.png"]},
    ),
    "everything at once": (
        RULE,
        ["a.mp4", "b.mp4", "b_mask.png", "b_mask.jpg", "c_mask.png"],
        {
            "clips_without_mask": ["a.mp4"],
            "masks_without_clip": ["c_mask.png"],
            "masks_of_one_clip": ["b_mask.png", "b_mask.jpg"],
        },
    ),
    "Z13 one name in two folders": (
        RULE,
        ["x/a.mp4", "x/a_mask.png", "y/A.mp4", "y/a_mask.png"],
        {"repeated_names": ["x/a.mp4", "y/A.mp4"]},
    ),
    "one name, two extensions": (
        RULE,
        ["a.mp4", "a.mov", "a_mask.png"],
        {"repeated_names": ["a.mp4", "a.mov"]},
    ),
    "two captions": (
        RULE,
        ["a.mp4", "a_mask.png", "x/a.txt", "y/a.txt"],
        {"repeated_names": ["x/a.txt", "y/a.txt"]},
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    rule, names, expected = REFUSED[case]
    with pytest.raises(DatasetRuleError) as caught:
        pair(members(*names), rule)
    assert caught.value.ctx == expected
    assert caught.value.field == "training_data_url"
    for named in expected.values():
        for name in named:
            assert name in caught.value.message


def test_many_troubles_stay_readable() -> None:
    names = [f"{number:03d}.mp4" for number in range(100)]
    with pytest.raises(DatasetRuleError) as caught:
        pair(members(*names), RULE)
    assert "019.mp4 and 80 more" in caught.value.message
    assert caught.value.ctx["clips_without_mask"] == names


def test_hostile_names_are_shown_not_printed() -> None:
    with pytest.raises(DatasetRuleError) as caught:
        pair(members("{0}\x1b[31m.mp4"), RULE)
    assert "{0}\\u001b[31m.mp4" in caught.value.message
    assert caught.value.ctx == {"clips_without_mask": ["{0}\\u001b[31m.mp4"]}


def test_m51_an_image_that_is_no_mask() -> None:
    with pytest.raises(DatasetRuleError, match=r"a-mask\.png is an image.*<name of the clip>_mask"):
        pair(members("a.mp4", "a-mask.png"), RULE)


def test_only_masks() -> None:
    with pytest.raises(DatasetRuleError) as caught:
        pair(members("a_mask.png", "b_mask.mp4"), RULE)
    assert caught.value.type == "archive_file_count_below_minimum"


@given(st.lists(st.text("ab_", min_size=1, max_size=4), unique_by=folded, min_size=1, max_size=6))
def test_every_clip_has_its_own_mask(stems: list[str]) -> None:
    stems = [stem for stem in stems if not stem.endswith("_mask")]
    names = [f"{stem}.mp4" for stem in stems] + [f"{stem}_mask.png" for stem in stems]
    if stems:
        assert masks_in(names, RULE) == {f"{stem}.mp4": f"{stem}_mask.png" for stem in stems}
