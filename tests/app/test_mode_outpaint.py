"""`/outpaint`: the kept rectangle in requests through HTTP, and what it becomes."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app import modes
from app.modes.common import FRAME_SIZES
from preprocessing.rules import AudioPolicy
from tests.app.asking import (
    MISSING,
    PROMPT,
    VIDEO,
    Bad,
    accepted,
    check_refused,
    parsed,
    refused,
    wrong,
    wrong_entry,
)
from tests.app.conftest import Gateway
from trainer.conditions import keep_masks
from trainer.errors import ConditionError
from trainer.latents import VideoGeometry
from trainer.spec import KeepRectangle

PATH = "outpaint"
MODE = modes.by_path(PATH)
TOP, BOTTOM = "crop_top_left", "crop_bottom_right"
LOW_WIDE = {"resolution": "low", "aspect_ratio": "16:9"}
LOW_PREVIEWS = {"validation_resolution": "low"}


def kept(left: Any, top: Any, right: Any, bottom: Any, **more: Any) -> dict[str, Any]:
    return {TOP: [left, top], BOTTOM: [right, bottom], **more}


def useless(id: str, changes: dict[str, Any], says: str, loc: str = BOTTOM) -> Bad:
    return Bad(id, changes, loc, "value_error", says)


BAD = [
    wrong(TOP, MISSING, "missing", "required"),
    wrong(BOTTOM, MISSING, "missing", "required"),
    wrong(TOP, None, "list_type", "array"),
    wrong(TOP, "128,128", "list_type", "array"),
    wrong(TOP, {"x": 128, "y": 128}, "list_type", "array"),
    wrong(TOP, [128], "sequence_too_short", "2"),
    wrong(BOTTOM, [], "sequence_too_short", "2"),
    wrong(BOTTOM, [640, 640, 1], "sequence_too_long", "2"),
    wrong(TOP, [128.0, 128.0], "int_type", "two integers"),
    wrong(TOP, ["128", "128"], "int_type", "two integers"),
    wrong(TOP, [False, True], "int_type", "two integers"),
    wrong(BOTTOM, [640, None], "int_type", "two integers"),
    wrong(BOTTOM, [[640, 640], [1, 1]], "int_type", "two integers"),
    wrong(TOP, [-32, 0], "value_error", "[-32, 0] lies outside the 768x768 training frame"),
    wrong(TOP, [128, 800], "value_error", "x from 0 to 768"),
    wrong(TOP, [-(2**63) - 1, 0], "value_error", "[..., 0] lies outside"),
    wrong(BOTTOM, [10**20, 10**20], "value_error", "[..., ...] lies outside"),
    wrong(BOTTOM, [10**4_000, 640], "value_error", "768x768"),
    wrong(BOTTOM, [769, 640], "value_error", "(resolution medium, aspect_ratio 1:1)"),
    wrong(BOTTOM, [1600, 900], "value_error", "not of the uploaded video"),
    useless("below a low wide frame", kept(0, 0, 512, 289, **LOW_WIDE), "y from 0 to 288"),
    useless("x2 = x1", kept(128, 128, 128, 640), "x2 > x1"),
    useless("x2 < x1", kept(640, 128, 128, 640), "crop_top_left [640, 128]"),
    useless("y2 = y1", kept(128, 640, 640, 640), "y2 > y1"),
    useless("y2 < y1", kept(128, 640, 640, 128), "y2 > y1"),
    useless("both corners swapped", kept(640, 640, 128, 128), "768x768"),
    useless("20 pixels", kept(128, 128, 148, 148), "nothing is kept"),
    useless("31 pixels wide", kept(0, 0, 31, 640), "[0, 0] to [0, 640]"),
    useless("62 pixels without a cell", kept(0, 1, 640, 31), "at least 32 pixels"),
    useless("the whole frame", kept(0, 0, 768, 768), "nothing is left to generate"),
    useless("snaps to the whole frame", kept(31, 31, 768, 768), "[0, 0] to [768, 768]"),
    useless("a whole low wide frame", kept(0, 0, 512, 288, **LOW_WIDE), "512x288"),
    useless(
        "the whole preview",
        kept(32, 0, 768, 768, **LOW_PREVIEWS),
        "512x512 frame",
        "validation_resolution",
    ),
    useless(
        "nothing of the preview",
        kept(64, 64, 96, 96, resolution="high", **LOW_PREVIEWS),
        "nothing is kept",
        "validation_resolution",
    ),
    useless(
        "nothing of a preview of another shape",
        kept(0, 0, 640, 64, **LOW_PREVIEWS, validation_aspect_ratio="16:9"),
        "validation_aspect_ratio 16:9",
        "validation_resolution",
    ),
    wrong("number_of_steps", 99, "greater_than_equal", "100"),
    wrong_entry(PROMPT, "video_url", "missing", "required"),
    wrong("validation", [VIDEO, PROMPT], "missing", loc="validation.1.video_url"),
    wrong_entry({**VIDEO, "video_url": None}, "video_url", "string_type"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_refused(shared_gateway: Gateway, bad: Bad) -> None:
    check_refused(shared_gateway, PATH, bad)


def test_both_corners_outside_are_named(shared_gateway: Gateway) -> None:
    details = refused(shared_gateway, PATH, kept(-1, 0, 800, 640))
    assert [detail["loc"] for detail in details] == [["body", TOP], ["body", BOTTOM]]


GOOD: list[tuple[str, dict[str, Any]]] = [
    ("32 pixels", kept(128, 128, 160, 160)),
    ("one cell after snapping", kept(30, 0, 60, 640)),
    ("a margin of 32", kept(0, 0, 736, 768)),
    ("snaps to a margin of 32", kept(0, 0, 767, 768)),
    ("full width", kept(0, 32, 768, 768)),
    ("the page's other example", kept(0, 0, 512, 512)),
    ("useless in previews nobody asked for", kept(32, 0, 768, 768, validation=[], **LOW_PREVIEWS)),
    ("steps between hundreds", {"number_of_steps": 101}),
]


@pytest.mark.parametrize("changes", [r[1] for r in GOOD], ids=[r[0] for r in GOOD])
def test_accepted_as_sent(shared_gateway: Gateway, changes: dict[str, Any]) -> None:
    stored = accepted(shared_gateway, PATH, changes)
    assert {name: stored[name] for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "columns", "rows"),
    [
        (kept(128, 128, 640, 640), range(4, 20), range(4, 20)),
        (kept(33, 30, 224, 191), range(1, 7), range(0, 5)),
        (kept(0, 0, 512, 512), range(0, 16), range(0, 16)),
    ],
    ids=["aligned", "both edges are floored", "a corner"],
)
def test_what_is_kept(changes: dict[str, Any], columns: range, rows: range) -> None:
    """The worked numbers of `ltx-training.md` 1.4."""
    (condition,) = MODE.training_spec(parsed(PATH, **changes)).conditions
    assert condition.cells(768, 768) == (columns, rows)


@pytest.mark.parametrize(
    ("size", "columns", "rows"),
    [
        ((960, 960), range(5, 25), range(5, 25)),
        ((960, 544), range(5, 25), range(2, 14)),
    ],
    ids=["high 1:1", "high 16:9"],
)
def test_what_previews_keep(size: tuple[int, int], columns: range, rows: range) -> None:
    """The worked numbers of `ltx-training.md` 1.9: scaled first, then floored."""
    (condition,) = MODE.training_spec(parsed(PATH)).conditions
    assert condition.cells(*size) == (columns, rows)


def test_corners_are_x_y() -> None:
    request = parsed(PATH, **kept(32, 64, 96, 256, aspect_ratio="16:9"))
    assert MODE.training_spec(request).conditions == (
        KeepRectangle(left=32, top=64, right=96, bottom=256, frame_width=768, frame_height=448),
    )


def test_what_it_asks_of_an_archive() -> None:
    rule = MODE.dataset_rule(parsed(PATH, split_input_duration_threshold=12.0))
    assert rule.image_extensions == ()
    assert rule.video_extensions == (".mp4", ".mov", ".avi", ".mkv")
    assert rule.audio == AudioPolicy.OFF
    assert (rule.split_scenes, rule.split_threshold_s) == (True, 12.0)
    assert not rule.masks
    assert not rule.unique_names


size = st.sampled_from(sorted(FRAME_SIZES))
coordinate = st.integers(0, 960)


@settings(max_examples=300, deadline=None)
@given(size, size, st.tuples(*[coordinate] * 4))
def test_exactly_what_the_trainer_can_use_is_accepted(
    trained: tuple[str, str], previewed: tuple[str, str], corners: tuple[int, int, int, int]
) -> None:
    frames = [FRAME_SIZES[trained], FRAME_SIZES[previewed]]
    width, height = frames[0]
    left, top, right, bottom = corners
    inside = left < right <= width and top < bottom <= height
    changes = kept(
        *corners,
        resolution=trained[0],
        aspect_ratio=trained[1],
        validation_resolution=previewed[0],
        validation_aspect_ratio=previewed[1],
    )
    try:
        (condition,) = MODE.training_spec(parsed(PATH, **changes)).conditions
    except ValidationError:
        assert not inside or not all(
            _usable(
                KeepRectangle(
                    left=left,
                    top=top,
                    right=right,
                    bottom=bottom,
                    frame_width=width,
                    frame_height=height,
                ),
                frame,
            )
            for frame in frames
        )
    else:
        assert inside
        assert all(_usable(condition, frame) for frame in frames)


def _usable(rectangle: KeepRectangle, frame: tuple[int, int]) -> bool:
    """Whether the trainer takes it, and keeps the cells that the request was checked with."""
    geometry = VideoGeometry(9, width=frame[0], height=frame[1], frame_rate=Fraction(24))
    columns, rows = rectangle.cells(*frame)
    try:
        video = keep_masks((rectangle,), geometry, num_audio_tokens=None).video
    except ConditionError:
        return False
    assert video.sum().item() == 2 * len(columns) * len(rows)
    return True
