"""When frames are on screen, and which of them make a sample. Pure arithmetic in exact fractions.

Rates written in files are hints: a rate is believed when the frames' own times agree with it.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np

from preprocessing.rules import DatasetRule

STANDARD_RATES: Final = (
    *(Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60, 120)),
    *(Fraction(rate) for rate in (8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60, 100, 120, 240)),
)
"""Rates that cameras and editors write, in frames per second."""

MAX_RATE: Final = Fraction(1000)
"""Frames per second; above this the times are broken, not the camera fast."""

SAME_RATE: Final = 0.002
"""Relative difference up to which two rates are meant to be one: 30 and 30000/1001 differ by half
of it."""

_NEAR: Final = 0.02
"""Relative distance at which a standard rate is tried: twice what 1 ms ticks blur in 2 seconds."""

_STEADY: Final = 0.25
"""Frame periods a frame may be off its place on the grid of a constant rate."""

_MAX_DENOMINATOR: Final = 1001

MIN_SOURCE_FRAMES: Final = 2
"""A span of one frame is a still, not a clip; it is not stretched."""


@dataclass(frozen=True)
class Span:
    """A part of a clip: [start, end) in seconds from its first frame."""

    start: Fraction
    end: Fraction

    @property
    def duration(self) -> Fraction:
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """Presentation times of all frames of a clip.

    ``ticks`` are the container's own, in ascending order, in units of ``time_base`` seconds.
    Seconds elsewhere count from the first frame. ``rate`` is the nominal one; where ``variable``
    is false, frame i is on screen from i / rate to (i + 1) / rate, exactly.
    """

    ticks: tuple[int, ...]
    time_base: Fraction
    rate: Fraction
    variable: bool
    last_duration: Fraction
    """Seconds that the last frame stays."""

    @property
    def num_frames(self) -> int:
        return len(self.ticks)

    @property
    def duration(self) -> Fraction:
        return self.start_of(self.num_frames)

    def start_of(self, frame: int) -> Fraction:
        """Seconds at which ``frame`` comes on screen; for the frame after the last, the end."""
        if not self.variable:
            return frame / self.rate
        if frame == self.num_frames:
            return self.start_of(frame - 1) + self.last_duration
        return (self.ticks[frame] - self.ticks[0]) * self.time_base

    def on_screen(self, seconds: Fraction) -> int:
        """The frame on screen at ``seconds``; before the first the first, after the last the last.

        Container times are rounded, so a frame counts as there from one tick early on.
        """
        if not self.variable:
            frame = int(seconds * self.rate)
        else:
            tick = self.ticks[0] + seconds / self.time_base + 1
            frame = bisect.bisect_right(self.ticks, tick) - 1
        return min(max(frame, 0), self.num_frames - 1)

    def nearest(self, seconds: Fraction, every: Fraction) -> int:
        """The frame for a picture that is shown for ``every`` seconds from ``seconds`` on.

        The one that comes on screen nearest to it, the earlier of two; but none that comes more
        than half of ``every`` later, so that a slow clip's next frame waits for its time.
        """
        frame = self.on_screen(seconds)
        if frame == self.num_frames - 1:
            return frame
        behind, ahead = seconds - self.start_of(frame), self.start_of(frame + 1) - seconds
        return frame + 1 if ahead < min(behind, every / 2) else frame

    def nearest_end(self, seconds: Fraction, every: Fraction) -> int:
        """`nearest` mirrored: the frame for a picture that is shown until ``seconds``.

        The one that leaves the screen nearest to it, the later of two.
        """
        frame = max(self.frames_in(Span(Fraction(0), seconds)).stop - 1, 0)
        if frame == 0:
            return frame
        behind, ahead = seconds - self.start_of(frame), self.start_of(frame + 1) - seconds
        return frame - 1 if behind < min(ahead, every / 2) else frame

    def counts_at(self, rate: Fraction) -> bool:
        """Whether its frames, played one by one at ``rate``, keep their time: the rates are the
        same, or the same but for the 1000/1001 of broadcasting."""
        return not self.variable and abs(self.rate / rate - 1) <= SAME_RATE

    def frames_in(self, span: Span) -> range:
        """Frames that come on screen within ``span``."""
        if not self.variable:
            first, end = (-int(-at * self.rate // 1) for at in (span.start, span.end))
        else:
            ticks = [self.ticks[0] + at / self.time_base for at in (span.start, span.end)]
            first, end = (bisect.bisect_left(self.ticks, tick) for tick in ticks)
        return range(min(first, self.num_frames), min(end, self.num_frames))


def measure(
    ticks: Sequence[int], time_base: Fraction, hints: Sequence[Fraction], last_duration: Fraction
) -> Timeline:
    """The timeline of frames at ascending ``ticks``.

    The rate is the one among ``hints``, `STANDARD_RATES` and the mean that fits the times best;
    the earlier of equally good ones. Frames that no constant rate explains are variable, and their
    rate is the most common one. ``last_duration`` in seconds, 0 if unknown.
    """
    hints = [hint for hint in hints if 0 < hint <= MAX_RATE]
    if len(ticks) == 1:
        rate = hints[0] if hints else Fraction(1) / (last_duration or Fraction(1, 24))
        return Timeline(tuple(ticks), time_base, rate, False, 1 / rate)
    at = (np.asarray(ticks, dtype=np.float64) - ticks[0]) * float(time_base)
    mean = Fraction(len(ticks) - 1) / ((ticks[-1] - ticks[0]) * time_base)
    median = 1 / float(np.median(np.diff(at)))
    near = [rate for rate in STANDARD_RATES if abs(rate / mean - 1) < _NEAR]
    candidates = [*hints, *near, _simple(mean)]
    misfit = [_misfit(at, rate) for rate in candidates]
    good_enough = min(misfit) + float(time_base)
    best = next(i for i, off in enumerate(misfit) if off <= good_enough)
    if misfit[best] * float(candidates[best]) <= _STEADY:
        rate = candidates[best]
        return Timeline(tuple(ticks), time_base, rate, False, 1 / rate)
    measured = _simple(Fraction(median))
    rate = min((*hints, *STANDARD_RATES), key=lambda one: abs(float(one) / median - 1))
    if abs(float(rate) / median - 1) > _NEAR:
        rate = measured
    return Timeline(tuple(ticks), time_base, rate, True, last_duration or 1 / rate)


def _simple(rate: Fraction) -> Fraction:
    """``rate`` with a small denominator; as it is where that would be none: frames months apart."""
    return rate.limit_denominator(_MAX_DENOMINATOR) or rate


def _misfit(at: "np.ndarray[tuple[int], np.dtype[np.float64]]", rate: Fraction) -> float:
    """Seconds by which the worst frame is off a grid of ``rate``, the grid shifted at best."""
    off = at - np.arange(len(at)) / float(rate)
    return float(off.max() - off.min()) / 2


@dataclass(frozen=True)
class FramePlan:
    """Which source frame becomes each frame of a sample, and the window of the clip they cover."""

    indices: tuple[int, ...]
    frame_rate: Fraction
    window: Span
    time_scale: Fraction
    """Above 1: played that much slower than it was."""
    num_source_frames: int
    """Frames that come on screen within the window."""


def plan(timeline: Timeline, span: Span, rule: DatasetRule) -> FramePlan | None:
    """Choose the frames of one sample from ``span``; None where it is too short.

    Without ``auto_scale``, the clip's own frames at its own rate from the start of the span. With
    it, the frames nearest to the wanted rate's times: at true speed where the span lasts long
    enough, else the whole span slowed down to fill all frames. A clip of that rate, or nearly
    (`Timeline.counts_at`), gives its frames one by one.
    """
    wanted = rule.num_frames
    there = timeline.frames_in(span)
    if len(there) < min(wanted, MIN_SOURCE_FRAMES):
        return None
    if rule.auto_scale:
        rate = Fraction(rule.frame_rate)
        time_scale = max(Fraction(1), wanted / rate / span.duration)
    else:
        rate, time_scale = timeline.rate, Fraction(1)
        num_own = round(span.duration * rate) if timeline.variable else len(there)
        if num_own < wanted:
            return None
    if timeline.counts_at(rate) and len(there) >= wanted:
        time_scale = Fraction(1)
        indices = tuple(there[:wanted])
    else:
        every = 1 / rate / time_scale
        nearest = (timeline.nearest(span.start + i * every, every) for i in range(wanted))
        indices = tuple(min(max(index, there[0]), there[-1]) for index in nearest)
    window = Span(span.start, span.start + wanted / rate / time_scale)
    return FramePlan(indices, rate, window, time_scale, len(timeline.frames_in(window)))
