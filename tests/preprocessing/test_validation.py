"""The clips that previews start from: which frames, which sound, which mask, which refusal."""

import json
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.errors import DatasetError
from preprocessing.events import EventLog
from preprocessing.manifest import ValidationManifest
from preprocessing.media import fit_excerpt, probe_video
from preprocessing.media.errors import TooShort
from preprocessing.media.excerpt import frames_at, plan_excerpt
from preprocessing.media.timeline import Timeline
from preprocessing.report import Refusal
from preprocessing.rules import ValidationRule
from preprocessing.validation import ValidationSource, prepare_validation
from tests.preprocessing.masks import box, flashes, write_mask_image, write_mask_video
from tests.preprocessing.media.made import make_clip, numbered, numbered_clip, numbers_in, tone

ROOT = Path(__file__).parents[2]
NTSC = Fraction(30000, 1001)


def rule(**values: object) -> ValidationRule:
    plain: dict[str, Any] = {"num_frames": 17, "frame_rate": 24, "width": 160, "height": 96}
    return ValidationRule(**(plain | values))


def steady(count: int, rate: Fraction | int) -> Timeline:
    return Timeline(tuple(range(count)), 1 / Fraction(rate), Fraction(rate), False, Fraction(0))


# Which frames.

EXCERPTS: dict[str, tuple[dict[str, Any], int, Fraction | int, list[int]]] = {
    "start": ({}, 40, 24, list(range(17))),
    "start, clip exactly as long": ({}, 17, 24, list(range(17))),
    "start, clip shorter: snapped down": ({}, 16, 24, list(range(9))),
    "start, twice the rate": ({}, 80, 48, list(range(0, 34, 2))),
    "start, half the rate": ({}, 20, 12, [i // 2 for i in range(17)]),
    "end": ({"anchor": "end"}, 40, 24, list(range(23, 40))),
    "end, clip exactly as long": ({"anchor": "end"}, 17, 24, list(range(17))),
    "end, filled in front": ({"anchor": "end"}, 14, 24, [0, 0, 0, *range(14)]),
    "end, eight frames": ({"anchor": "end", "min_frames": 8}, 8, 24, [0, *range(8)]),
    "end, twice the rate": ({"anchor": "end"}, 80, 48, list(range(47, 80, 2))),
    "end, half the rate": ({"anchor": "end"}, 20, 12, [11, *(12 + i // 2 for i in range(16))]),
    "end, one and a half": (
        {"anchor": "end"},
        60,
        36,
        [59 - 3 * i // 2 for i in reversed(range(17))],
    ),
}


@pytest.mark.parametrize("case", EXCERPTS)
def test_frames(case: str, tmp_path: Path) -> None:
    """Read off the pictures: each has its number burned in."""
    values, count, rate, expected = EXCERPTS[case]
    clip = numbered_clip(tmp_path / "clip.mp4", count, rate=rate)
    probed = probe_video(clip, clip.name)
    fitted = fit_excerpt(probed, rule(**values), tmp_path / "frames.npy")
    assert numbers_in(tmp_path / "frames.npy") == expected
    assert (fitted.num_frames, fitted.frame_rate) == (len(expected), 24)
    assert fitted.num_frames % 8 == 1
    assert fitted.source_times == tuple(n / Fraction(rate) for n in expected)
    edge = fitted.end_s if values.get("anchor") == "end" else fitted.start_s
    assert edge == pytest.approx(count / rate if values.get("anchor") == "end" else 0)
    assert fitted.end_s - fitted.start_s == pytest.approx(fitted.num_frames / 24)


TO_24_START: dict[Fraction, list[int]] = {
    Fraction(24000, 1001): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    NTSC: [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 19, 20],
    Fraction(60): [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40],
    Fraction(25): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17],
}
TO_24_END: dict[Fraction, list[int]] = {
    Fraction(24000, 1001): list(range(183, 200)),
    NTSC: [179, 180, 182, 183, 184, 185, 187, 188, 189, 190, 192, 193, 194, 195, 197, 198, 199],
    Fraction(60): [
        *(159, 162, 164, 167, 169, 172, 174, 177, 179),
        *(182, 184, 187, 189, 192, 194, 197, 199),
    ],
    Fraction(25): [182, 183, 184, 185, 187, 188, 189, 190, *range(191, 200)],
}


@pytest.mark.parametrize("rate", TO_24_START, ids=str)
def test_200_frames_to_24(rate: Fraction) -> None:
    """At the end, the same distances counted back from the last frame."""
    timeline = steady(200, rate)
    assert list(plan_excerpt(timeline, rule()).indices) == TO_24_START[rate]
    assert list(plan_excerpt(timeline, rule(anchor="end")).indices) == TO_24_END[rate]


def test_200_frames_of_29_97_to_30() -> None:
    timeline = steady(200, NTSC)
    start = plan_excerpt(timeline, rule(frame_rate=30))
    assert list(start.indices) == list(range(17))
    assert (start.window.start, start.window.end) == (0, Fraction(17, 30))
    end = plan_excerpt(timeline, rule(frame_rate=30, anchor="end"))
    assert list(end.indices) == list(range(183, 200))
    assert end.window.end - end.window.start == Fraction(17, 30)
    assert end.window.end == Fraction(200 * 1001, 30000)


def test_a_thousand_frames_of_23_976_to_24() -> None:
    """41.7 s: the clip lasts one frame longer at 24, so its first or its last is shown twice."""
    timeline = steady(1000, Fraction(24000, 1001))
    start = plan_excerpt(timeline, rule(num_frames=1001))
    assert list(start.indices) == [*range(1000), 999]
    end = plan_excerpt(timeline, rule(num_frames=1001, anchor="end"))
    assert list(end.indices) == [0, *range(1000)]


def test_the_end_of_a_jerky_clip(tmp_path: Path) -> None:
    ticks = [0, 1, 2, 5, 6, 9, 10, 11, 15, 16, 17, 21, 22, 25]
    clip = make_clip(
        tmp_path / "clip.mp4",
        map(numbered, range(14)),
        ticks=[tick * 3000 for tick in ticks],
        time_base=Fraction(1, 90000),
    )
    fitted = fit_excerpt(
        probe_video(clip, "clip"), rule(anchor="end", frame_rate=30), tmp_path / "f.npy"
    )
    numbers = numbers_in(tmp_path / "f.npy")
    assert numbers[-1] == 13
    assert {12, 13} < set(numbers)
    assert numbers == sorted(numbers)
    assert fitted.num_frames == 17


@settings(max_examples=200, deadline=None)
@given(
    st.integers(9, 300),
    st.sampled_from([12, 24, 25, 30, 50, 60, NTSC]),
    st.integers(8, 60),
    st.sampled_from([9, 17, 89, 121]),
    st.sampled_from(["start", "end"]),
)
def test_properties(count: int, rate: Fraction, wanted_rate: int, frames: int, anchor: Any) -> None:
    timeline = steady(count, rate)
    chosen = plan_excerpt(timeline, rule(num_frames=frames, frame_rate=wanted_rate, anchor=anchor))
    indices = list(chosen.indices)
    assert len(indices) % 8 == 1
    assert len(indices) <= frames
    assert indices == sorted(indices)
    assert indices[0] >= 0
    assert indices[-1] < count
    assert indices[0 if anchor == "start" else -1] == (0 if anchor == "start" else count - 1)
    there = frames_at(timeline, wanted_rate)
    assert abs(there - float(timeline.duration * wanted_rate)) <= 0.5
    if anchor == "start":
        assert len(indices) <= max(there, 1)
    elif there < frames:
        filled = len(indices) - there
        assert 0 <= filled < 8
        assert indices[: filled + 1] == [indices[0]] * (filled + 1)
    if rate == wanted_rate:
        own = indices if anchor == "start" else indices[len(indices) - min(there, frames) :]
        assert [b - a for a, b in pairwise(own)] == [1] * (len(own) - 1)


@pytest.mark.parametrize(("count", "rate"), [(8, 30), (14, 48), (7, 24)])
def test_too_short_at_the_validation_rate(count: int, rate: int, tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.mp4", count, rate=rate)
    with pytest.raises(TooShort) as caught:
        fit_excerpt(probe_video(clip, "clip"), rule(min_frames=8, anchor="end"), tmp_path / "f.npy")
    assert "at 24 frames per second" in caught.value.message
    assert "a longer clip, or ask for a higher frame rate" in caught.value.message
    assert caught.value.type == "video_duration_too_short"
    assert caught.value.ctx["min_frames"] == 8


# Whole, through the library and the command.


def run(clips: list[ValidationSource], rule: ValidationRule, out: Path) -> ValidationManifest:
    out.mkdir(exist_ok=True)
    with EventLog(out / "events.jsonl") as events:
        manifest = prepare_validation(clips, rule, out, events)
    assert ValidationManifest.load(out) == manifest
    return manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    numbered_clip(folder / "silent.mp4", 40, rate=24)
    numbered_clip(folder / "short.mp4", 10, rate=24)
    sound = np.concatenate([np.zeros((2, 40_000), np.float32), tone(40_000 / 48_000, 440)], axis=1)
    numbered_clip(folder / "sound.mp4", 40, rate=24, sound=sound)
    numbered_clip(folder / "short_sound.mp4", 12, rate=24, sound=tone(0.5, 440))
    write_mask_image(folder / "left.png", box(96, 96, (0, 0, 0.4, 1)))
    write_mask_image(folder / "black.png", box(96, 96, (0, 0, 0, 0)))
    write_mask_video(folder / "flash.mp4", flashes(40, 38), rate=24)
    (folder / "text.bin").write_bytes(b"neither")
    return folder


def test_masks_and_order(folder: Path, tmp_path: Path) -> None:
    clips = [
        ValidationSource(video=folder / "silent.mp4", mask=folder / "flash.mp4"),
        ValidationSource(video=folder / "short.mp4", mask=folder / "left.png"),
    ]
    manifest = run(clips, rule(masks=True, anchor="end"), tmp_path / "out")
    assert [clip.num_frames for clip in manifest.clips] == [17, 17]
    edited = []
    for clip in manifest.clips:
        assert clip.audio is None
        assert clip.keep_mask is not None
        assert np.load(tmp_path / "out" / clip.frames).shape == (17, 96, 160, 3)
        kept = np.load(tmp_path / "out" / clip.keep_mask)
        assert (kept.shape, kept.dtype) == ((3, 3, 5), np.bool_)
        assert kept[:, :, 2:].all()
        edited.append(np.flatnonzero(~kept[:, 0, 0]).tolist())
    assert edited == [[2], [0, 1, 2]], "source frame 38 is frame 15 of the excerpt"


def test_sound_of_the_true_end(folder: Path, tmp_path: Path) -> None:
    """Frames 23 to 40 at 24 per second are 0.958 s to 1.667 s: the tone is all of it."""
    clips = [ValidationSource(video=folder / name) for name in ("sound.mp4", "short_sound.mp4")]
    manifest = run(clips, rule(with_audio=True, anchor="end"), tmp_path / "out")
    long, short = (np.load(tmp_path / "out" / c.audio.path) for c in manifest.clips if c.audio)
    assert long.shape == short.shape == (2, round(17 / 24 * 48_000))
    assert np.abs(long[:, 2000:-2000]).reshape(2, 50, -1).max(axis=2).min() > 0.5
    filled = round(5 / 24 * 48_000)
    assert not short[:, : filled - 2400].any(), "repeated frames are silent"
    assert np.abs(short[:, filled + 2400 :]).max() > 0.5
    from_start = run(clips[:1], rule(with_audio=True), tmp_path / "start").clips[0].audio
    assert from_start is not None
    assert np.abs(np.load(tmp_path / "start" / from_start.path)).max() < 0.01


REFUSALS: dict[str, tuple[list[tuple[str, str | None]], dict[str, Any], str, str]] = {
    "no video": ([("silent.mp4", None), ("text.bin", None)], {}, "1.video_url", "is not a video"),
    "too short": ([("short.mp4", None)], {"min_frames": 16}, "0.video_url", "10 frames"),
    "no sound": (
        [("sound.mp4", None), ("silent.mp4", None)],
        {"with_audio": True},
        "1.video_url",
        "has no sound",
    ),
    "no mask": ([("silent.mp4", None)], {"masks": True}, "0.mask_url", "is missing"),
    "mask unreadable": (
        [("silent.mp4", "text.bin")],
        {"masks": True},
        "0.mask_url",
        "neither an image",
    ),
    "mask black": (
        [("silent.mp4", "left.png"), ("silent.mp4", "black.png")],
        {"masks": True},
        "1.mask_url",
        "regenerates nothing of validation[1].video_url",
    ),
    "the first of two": (
        [("text.bin", None), ("text.bin", None)],
        {},
        "0.video_url",
        "is not a video",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_name_the_field(case: str, folder: Path, tmp_path: Path) -> None:
    entries, values, field, words = REFUSALS[case]
    clips = [
        ValidationSource(video=folder / video, mask=folder / mask if mask else None)
        for video, mask in entries
    ]
    with pytest.raises(DatasetError) as caught:
        run(clips, rule(**values), tmp_path / "out")
    entry, name = field.split(".")
    assert caught.value.field == f"validation.{field}"
    assert f"validation[{entry}].{name}" in caught.value.message
    assert words in caught.value.message
    assert str(folder) not in caught.value.message
    problem = Refusal.load(tmp_path / "out").problem
    assert (problem.field, problem.message) == (caught.value.field, caught.value.message)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"problem.json", "events.jsonl"}


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "preprocessing", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command(folder: Path, tmp_path: Path) -> None:
    spec, out = tmp_path / "spec.json", tmp_path / "new" / "out"

    def write(video: str, mask: str | None) -> None:
        clips = [{"video": str(folder / video), "mask": mask and str(folder / mask)}]
        spec.write_text(json.dumps({"rule": rule(masks=True).model_dump(), "clips": clips}))

    write("silent.mp4", "black.png")
    done = command("validation", "--spec", spec, "--out", out, "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("refused: validation[0].mask_url regenerates nothing")
    assert json.loads((out / "problem.json").read_text())["problem"]["type"] == "value_error"
    write("silent.mp4", "left.png")
    done = command("validation", "--spec", spec, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "validation done" in done.stdout
    assert len(ValidationManifest.load(out).clips) == 1
    assert not (out / "problem.json").exists()
    spec.write_text("{}")
    assert command("validation", "--spec", spec, "--out", out).returncode == 1
