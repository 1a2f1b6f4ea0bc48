"""The frames of a clip that a generation starts from, at any rate and its true speed."""

from fractions import Fraction
from pathlib import Path

from preprocessing.errors import MediaError
from preprocessing.manifest import Placement
from preprocessing.media.clip import Clip, FittedVideo
from preprocessing.media.errors import MissingFrames, TooShort
from preprocessing.media.excerpt import first_frames, frames_at, last_frames
from preprocessing.media.fit import write_frames
from preprocessing.media.probe import recount
from preprocessing.media.timeline import FramePlan, Span, Timeline
from preprocessing.names import short
from preprocessing.rules import SourceRule


def plan_source(timeline: Timeline, rule: SourceRule) -> FramePlan:
    """Choose the frames: the first or the last, as many as are asked for and are there."""
    rate, end = rule.frame_rate, timeline.duration
    count = min(frames_at(timeline, rate), rule.num_frames)
    if rule.window == "first":
        indices, start = first_frames(timeline, rate, count), Fraction(0)
    else:
        indices, start = last_frames(timeline, rate, count), max(Fraction(0), end - count / rate)
    window = Span(start, start + count / rate)
    return FramePlan(tuple(indices), rate, window, Fraction(1), len(timeline.frames_in(window)))


def fit_source(clip: Clip, rule: SourceRule, size: Placement, out: Path) -> FittedVideo:
    """Write the chosen frames to ``out``: uint8 [F, height, width, 3], RGB, F of any number.

    Raises `TooShort` for a clip of fewer than ``rule.min_frames`` at ``rule.frame_rate``, or
    `MediaError` where frames do not decode.
    """
    try:
        return _fit(clip, rule, size, out)
    except MissingFrames:
        counted = recount(clip)
    try:
        return _fit(counted, rule, size, out)
    except MissingFrames:
        raise MediaError(
            f"{short(clip.name)} is damaged: some of its frames do not decode. Export it again.",
            reason="unreadable",
        ) from None


def _fit(clip: Clip, rule: SourceRule, size: Placement, out: Path) -> FittedVideo:
    there = frames_at(clip.timeline, rule.frame_rate)
    if there < rule.min_frames:
        raise TooShort(
            f"{short(clip.name)} has {there} frames at {float(rule.frame_rate):g} frames per "
            f"second ({clip.facts.num_frames} at its own rate); at least {rule.min_frames} are "
            "needed. "
            "Send a longer clip.",
            ctx={
                "min_duration": float(rule.min_frames / rule.frame_rate),
                "provided_duration": round(float(clip.timeline.duration), 3),
                "min_frames": rule.min_frames,
                "provided_frames": there,
            },
        )
    chosen = plan_source(clip.timeline, rule)
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
