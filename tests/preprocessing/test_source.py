"""The clip that a generation starts from: where it lies, which frames, mask, sound, refusals."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import DatasetError, DatasetRuleError
from preprocessing.events import EventLog
from preprocessing.manifest import SourceManifest
from preprocessing.media.source_fit import plan_source
from preprocessing.media.timeline import Timeline
from preprocessing.placement import cut_share, place
from preprocessing.prepare_source import prepare_source
from preprocessing.report import Refusal
from preprocessing.rules import SourceRule
from tests.preprocessing.masks import box, write_mask_image
from tests.preprocessing.media.made import make_clip, number_in, numbered, numbered_clip, tone

ROOT = Path(__file__).parents[2]
NTSC = Fraction(30000, 1001)


def rule(**values: object) -> SourceRule:
    plain: dict[str, Any] = {"width": 160, "height": 96, "num_frames": 17, "frame_rate": 24}
    return SourceRule(**(plain | values))


# Where it lies.

PLACED = {
    # source, canvas, scale: left, top, width, height
    "fal's example": ((1920, 1080), (1280, 720), 0.75, (160, 96, 960, 544)),
    "landscape in 16:9 preset": ((1920, 1080), (1024, 576), 0.75, (96, 64, 800, 448)),
    "wide source, tall canvas": ((1920, 1080), (576, 1024), 1.0, (0, 352, 576, 320)),
    "a canvas off the grid": ((1440, 1080), (1280, 720), 1.0, (160, 0, 960, 720)),
    "quarter": ((1000, 1000), (1024, 1024), 0.25, (384, 384, 256, 256)),
    "small and square": ((1280, 720), (256, 256), 1.0, (0, 32, 256, 160)),
    "odd shape": ((853, 480), (512, 512), 0.5, (96, 160, 288, 160)),
}


@pytest.mark.parametrize("case", PLACED)
def test_placed(case: str) -> None:
    source, canvas, scale, expected = PLACED[case]
    found = place((Fraction(source[0]), Fraction(source[1])), canvas, scale)
    assert (found.left, found.top, found.width, found.height) == expected


@settings(max_examples=200, deadline=None)
@given(
    source=st.tuples(st.integers(64, 4096), st.integers(64, 4096)),
    canvas=st.tuples(st.integers(64, 960), st.integers(64, 960)).map(
        lambda c: (2 * c[0], 2 * c[1])
    ),
    scale=st.floats(0.25, 1.0),
)
def test_placed_anywhere(source: tuple[int, int], canvas: tuple[int, int], scale: float) -> None:
    """On the grid, inside, about as large as asked, in the middle, with something around it."""
    shape = Fraction(source[0]), Fraction(source[1])
    fits = min(canvas[0] / shape[0], canvas[1] / shape[1])
    if all(round(shape[i] * fits * Fraction(scale)) >= canvas[i] for i in (0, 1)):
        with pytest.raises(DatasetRuleError, match="nothing is left to generate"):
            place(shape, canvas, scale)
        return
    found = place(shape, canvas, scale)
    for side, start, whole, original in (
        (found.width, found.left, canvas[0], shape[0]),
        (found.height, found.top, canvas[1], shape[1]),
    ):
        assert start % 32 == 0
        assert side == whole or (side % 32 == 0 and side >= 32)
        assert 0 <= start <= start + side <= whole
        assert abs(side - original * fits * Fraction(scale)) <= 32
        assert abs(start - (whole - side) / 2) <= 32
    assert (found.width, found.height) != canvas


def test_what_is_cut() -> None:
    assert cut_share(Fraction(16, 9), (960, 544)) == Fraction(1, 136)
    assert cut_share(Fraction(16, 9), (960, 540)) == 0


# Which frames.

CHOSEN: dict[str, tuple[dict[str, Any], int, Fraction | int, list[int]]] = {
    "first": ({}, 40, 24, list(range(17))),
    "first, of any number": ({"num_frames": 12}, 40, 24, list(range(12))),
    "all there are": ({}, 12, 24, list(range(12))),
    "last": ({"window": "last", "num_frames": 8}, 40, 24, list(range(32, 40))),
    "half the rate": ({"num_frames": 8, "frame_rate": 12}, 40, 24, list(range(0, 16, 2))),
    "one a second": ({"num_frames": 3, "frame_rate": 1}, 80, 24, [0, 24, 48]),
    "rate of broadcasting": ({"num_frames": 9, "frame_rate": NTSC}, 40, 30, list(range(9))),
    "60 of 24": (
        {"num_frames": 6, "frame_rate": 60, "window": "last"},
        40,
        24,
        [37, 38, 38, 39, 39, 39],
    ),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_frames(case: str) -> None:
    values, count, rate, expected = CHOSEN[case]
    timeline = Timeline(tuple(range(count)), 1 / Fraction(rate), Fraction(rate), False, Fraction(0))
    chosen = plan_source(timeline, rule(**values))
    assert list(chosen.indices) == expected
    assert chosen.frame_rate == Fraction(values.get("frame_rate", 24))


# The whole.


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 numbered frames of 160x96 at 24 per second, with a tone."""
    out = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = (numbered(number) for number in range(30))
    return make_clip(out, frames, rate=24, sound=tone(30 / 24, 440), options={"crf": "1"})


def prepare(clip: Path, out: Path, mask: Path | None = None, **values: object) -> SourceManifest:
    with EventLog(out.parent / "events.jsonl") as events:
        made = prepare_source(clip, mask, rule(**values), out, events)
    assert SourceManifest.load(out) == made
    return made


def test_outpaint(clip: Path, tmp_path: Path) -> None:
    """Scaled into its rectangle, no sound unless it is asked for."""
    made = prepare(clip, tmp_path / "out", width=320, height=200, source_scale=0.5, num_frames=41)
    assert (made.placement.left, made.placement.top) == (64, 64)
    assert (made.placement.width, made.placement.height) == (160, 96)
    frames = np.load(tmp_path / "out" / made.frames)
    assert frames.shape == (30, 96, 160, 3)
    assert [number_in(frame) for frame in frames] == list(range(30))
    error = frames[7].astype(int) - numbered(7)
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 38
    assert (made.num_frames, made.frame_rate, made.audio, made.keep_mask) == (30, 24, None, None)
    assert made.notes[0].endswith(
        "(160x96) lies at 160x96 pixels in the canvas of 320x200, 64 from the left and 64 from "
        "the top."
    )
    assert made.notes[1] == (
        "video_url ends after 30 frames at 24 per second, so the video has 30 frames, not 41."
    )


def test_inpaint(clip: Path, tmp_path: Path) -> None:
    """A canvas off the grid: the mask's edge goes on to the next cell, its last frame is held."""
    mask = write_mask_image(tmp_path / "mask.png", box(160, 96, (0.5, 0.0, 1.0, 1.0)))
    made = prepare(clip, tmp_path / "out", mask, width=150, height=90, masks=True, num_frames=11)
    assert np.load(tmp_path / "out" / made.frames).shape == (11, 90, 150, 3)
    assert made.keep_mask is not None
    cells = np.load(tmp_path / "out" / made.keep_mask)
    assert cells.shape == (3, 3, 5)
    assert (cells == np.array([True, True, False, False, False])).all()
    assert made.notes[-1].startswith("mask_url, image of 160x96: 60.0 % of the cells")


def test_sound(clip: Path, tmp_path: Path) -> None:
    """The last eight frames and what is heard with them, at its own level."""
    made = prepare(clip, tmp_path / "out", num_frames=8, window="last", with_audio=True)
    assert made.audio is not None
    sound = np.load(tmp_path / "out" / made.audio.path)
    assert sound.shape == (2, round(8 / 24 * made.audio.sample_rate))
    assert 0.3 < np.abs(sound).max() < 0.75  # a tone of half the scale, not brought to the peak


def test_no_sound(tmp_path: Path) -> None:
    silent = numbered_clip(tmp_path / "silent.mp4", 12, rate=24)
    made = prepare(silent, tmp_path / "out", num_frames=9, with_audio=True)
    assert made.audio is None
    assert made.notes[-1] == "video_url has no sound, so all sound is generated."


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "too short": ({"min_frames": 33}, "video_url", "has 30 frames at 24 frames per second"),
    "fills the canvas": ({"source_scale": 1.0}, "source_scale", "nothing is left to generate"),
    "no room beside it": (
        {"source_scale": 0.9, "width": 32, "height": 32},
        "resolution",
        "too small for anything beside the source",
    ),
    "no mask": ({"masks": True}, "mask_url", "mask_url is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, clip: Path, tmp_path: Path) -> None:
    values, field, message = REFUSED[case]
    if case == "no room beside it":
        clip = make_clip(tmp_path / "square.mp4", (numbered(i, 96, 96) for i in range(9)), rate=24)
    with pytest.raises(DatasetError, match=message) as refusal:
        prepare(clip, tmp_path / "out", **values)
    assert refusal.value.field == field
    problem = Refusal.load(tmp_path / "out").problem
    assert (problem.field, problem.message) == (field, refusal.value.message)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["problem.json"]


def test_the_command(clip: Path, tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    spec.write_text(rule(width=320, height=192, source_scale=0.5).model_dump_json())
    command = [sys.executable, "-m", "preprocessing", "source"]
    arguments = ["--spec", str(spec), "--out", str(out), "--name", "holiday.mp4"]
    done = subprocess.run([*command, str(clip), *arguments], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"holiday.mp4 (160x96) lies at" in done.stdout
    assert SourceManifest.load(out).num_frames == 17
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"<html>")
    done = subprocess.run([*command, str(broken), *arguments], cwd=ROOT, capture_output=True)
    assert done.returncode == 2
    assert Refusal.load(out).problem.field == "video_url"
