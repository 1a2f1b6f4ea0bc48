"""What passes between the steps: a readable clip, and what was made of a part of it."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from preprocessing.media.geometry import Cover, centred
from preprocessing.media.timeline import Span, Timeline
from preprocessing.report import VideoFacts


@dataclass(frozen=True)
class Clip:
    """A readable clip. Picklable; holds no open file."""

    path: Path
    name: str
    """How the archive calls it: the only name for messages."""
    facts: VideoFacts
    timeline: Timeline = field(repr=False)
    has_times: bool = True
    """Decoded frames carry the timeline's ticks; else they are told apart by their order."""
    warnings: tuple[str, ...] = ()

    @property
    def whole(self) -> Span:
        return Span(Fraction(0), self.timeline.duration)

    @property
    def origin(self) -> Fraction:
        """The container's time, in seconds, of the clip's first frame."""
        return self.timeline.ticks[0] * self.timeline.time_base


@dataclass(frozen=True)
class FittedVideo:
    """Frames on disk, uint8 [num_frames, height, width, 3], and where they came from."""

    start_s: float
    end_s: float
    """The window of the clip that is shown, in seconds from its first frame."""
    num_source_frames: int
    num_frames: int
    frame_rate: Fraction
    width: int
    height: int
    scaled_width: int
    scaled_height: int
    """The whole frame after resize-to-cover, before the centre crop."""
    time_scale: float
    """Above 1: played that much slower than it was."""
    warnings: tuple[str, ...] = ()
    source_times: tuple[Fraction, ...] = field(default=(), repr=False)
    """For each frame, when it came on screen in the clip: seconds from the clip's first frame."""

    @property
    def cover(self) -> Cover:
        return centred(self.scaled_width, self.scaled_height, self.width, self.height)


@dataclass(frozen=True)
class FittedAudio:
    """Sound on disk, float32 [2, round(num_frames / frame_rate * sample_rate)]."""

    sample_rate: int
    description: str
    """What was done, for the report."""
