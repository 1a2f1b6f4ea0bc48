"""The excerpt of a clip that a preview starts from, at a given rate and its true speed."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from preprocessing.errors import MediaError
from preprocessing.media.clip import Clip, FittedVideo
from preprocessing.media.errors import MissingFrames, TooShort
from preprocessing.media.fit import Size, write_frames
from preprocessing.media.probe import recount
from preprocessing.media.timeline import FramePlan, Span, Timeline
from preprocessing.names import short
from preprocessing.rules import (
    LATENT_STRIDE_FRAMES,
    DatasetRule,
    ValidationRule,
    snap_num_frames,
)


def frames_at(timeline: Timeline, frame_rate: int | Fraction) -> int:
    """How many frames a clip has when it is played at ``frame_rate``; halves count as one."""
    return int(timeline.duration * frame_rate + Fraction(1, 2))


def first_frames(timeline: Timeline, rate: Fraction, count: int) -> list[int]:
    """``count`` frames from the clip's start on: those that come on screen nearest to i / rate."""
    every, last = 1 / rate, timeline.num_frames - 1
    if timeline.counts_at(rate):
        return [min(i, last) for i in range(count)]
    return [timeline.nearest(i * every, every) for i in range(count)]


def last_frames(timeline: Timeline, rate: Fraction, count: int) -> list[int]:
    """``count`` frames up to the clip's end: those that leave the screen nearest to i / rate before
    it."""
    every, last = 1 / rate, timeline.num_frames - 1
    if timeline.counts_at(rate):
        return [max(last - i, 0) for i in reversed(range(count))]
    end = timeline.duration
    return [timeline.nearest_end(end - i * every, every) for i in reversed(range(count))]


def plan_excerpt(timeline: Timeline, rule: ValidationRule) -> FramePlan:
    """Choose the frames, 8k + 1 of them, of a clip that has at least one.

    Anchored at the start, frame i is the one that comes on screen nearest to i / rate. Anchored at
    the end, the last frame is the clip's last one and the i-th before it is the one that leaves the
    screen nearest to i / rate before the end; where there are fewer than 8k + 1, the first of them
    is repeated in front. A clip of that rate, or nearly, is counted off one by one from its anchor.
    """
    rate = Fraction(rule.frame_rate)
    end = timeline.duration
    there = min(frames_at(timeline, rule.frame_rate), rule.num_frames)
    if rule.anchor == "start":
        num_frames = snap_num_frames(there)
        window = Span(Fraction(0), num_frames / rate)
        indices = first_frames(timeline, rate, num_frames)
    else:
        num_frames = snap_num_frames(there + LATENT_STRIDE_FRAMES - 1)
        window = Span(end - num_frames / rate, end)
        indices = last_frames(timeline, rate, there)
        indices[:0] = [indices[0]] * (num_frames - there)
    seen = timeline.frames_in(Span(max(window.start, Fraction(0)), window.end))
    return FramePlan(tuple(indices), rate, window, Fraction(1), len(seen))


def fit_excerpt(clip: Clip, rule: ValidationRule, out: Path) -> FittedVideo:
    """Write what a preview is made from to ``out``: uint8 [8k + 1, height, width, 3], RGB.

    Raises as `fit_at_true_speed`.
    """
    return fit_at_true_speed(clip, rule, lambda timeline: plan_excerpt(timeline, rule), rule, out)


class AtTrueSpeed(Protocol):
    """What previews and generations both ask of the clip they start from."""

    @property
    def frame_rate(self) -> int | Fraction: ...

    @property
    def min_frames(self) -> int: ...


def fit_at_true_speed(
    clip: Clip, rule: AtTrueSpeed, plan: Callable[[Timeline], FramePlan], size: Size, out: Path
) -> FittedVideo:
    """Write the frames that ``plan`` chooses to ``out``: uint8 [F, height, width, 3], RGB.

    Raises `TooShort` for a clip of fewer than ``rule.min_frames`` at ``rule.frame_rate``, or
    `MediaError` where frames do not decode.
    """
    try:
        return _fit(clip, rule, plan, size, out)
    except MissingFrames:
        counted = recount(clip)
    try:
        return _fit(counted, rule, plan, size, out)
    except MissingFrames:
        raise MediaError(
            f"{short(clip.name)} is damaged: some of its frames do not decode. Export it again.",
            reason="unreadable",
        ) from None


def _fit(
    clip: Clip, rule: AtTrueSpeed, plan: Callable[[Timeline], FramePlan], size: Size, out: Path
) -> FittedVideo:
    there = frames_at(clip.timeline, rule.frame_rate)
    if there < rule.min_frames:
        raise _too_short(clip, rule, there)
    chosen = plan(clip.timeline)
    cover = write_frames(clip, chosen, size, out)
    return FittedVideo(
        start_s=float(chosen.window.start),
        end_s=float(chosen.window.end),
        num_source_frames=chosen.num_source_frames,
        num_frames=len(chosen.indices),
        frame_rate=chosen.frame_rate,
        width=size.width,
        height=size.height,
        scaled_width=cover.width,
        scaled_height=cover.height,
        time_scale=1.0,
        warnings=clip.warnings,
        source_times=tuple(clip.timeline.start_of(index) for index in chosen.indices),
    )


def _too_short(clip: Clip, rule: AtTrueSpeed, there: int) -> TooShort:
    return TooShort(
        f"{short(clip.name)} has {there} frames at {float(rule.frame_rate):g} frames per second "
        f"({clip.facts.num_frames} at its own rate); at least {rule.min_frames} are needed. "
        "Send a longer clip, or ask for a higher frame rate.",
        ctx={
            "min_duration": float(rule.min_frames / Fraction(rule.frame_rate)),
            "provided_duration": round(float(clip.timeline.duration), 3),
            "min_frames": rule.min_frames,
            "provided_frames": there,
        },
    )


def as_dataset_rule(rule: ValidationRule, num_frames: int) -> DatasetRule:
    """The rule that fitting asks: size, length and loudness are the same kind of demand."""
    return DatasetRule(
        num_frames=num_frames,
        frame_rate=rule.frame_rate,
        width=rule.width,
        height=rule.height,
        audio_normalize=rule.audio_normalize,
    )
