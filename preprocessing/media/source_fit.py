"""The frames of a clip that a generation starts from, at any rate and its true speed."""

from fractions import Fraction
from pathlib import Path

from preprocessing.manifest import Placement
from preprocessing.media.clip import Clip, FittedVideo
from preprocessing.media.excerpt import first_frames, fit_at_true_speed, frames_at, last_frames
from preprocessing.media.timeline import FramePlan, Span, Timeline
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

    Raises as `fit_at_true_speed`.
    """
    return fit_at_true_speed(clip, rule, lambda timeline: plan_source(timeline, rule), size, out)
