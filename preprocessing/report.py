"""The dataset report: for every file of the archive what it was, what it became, or why not.

It is stored with every request, failed ones too, and served as JSON; its shape is a public promise.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict

from preprocessing.errors import DatasetError
from preprocessing.manifest import REPORT_FILE, FrameRate

PROBLEM_FILE: Final = "problem.json"
MAX_CTX_ITEMS: Final = 100
"""Names in a refusal's ``ctx``: more than a dataset has that somebody mends by hand. It is a row, a
reply to every poll and a webhook; 10,000 names are megabytes. The report has all."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Problem(_Data):
    """Why a file or the whole dataset was refused, in fal's terms."""

    type: str
    message: str
    field: str = "training_data_url"
    ctx: dict[str, object] = {}

    @classmethod
    def of(cls, error: DatasetError) -> "Problem":
        ctx = {
            name: value[:MAX_CTX_ITEMS] if isinstance(value, list) else value
            for name, value in error.ctx.items()
        }
        return cls(type=error.type, message=error.message, field=error.field, ctx=ctx)


class Refusal(_Data):
    """``problem.json``: why the validation clips were refused."""

    problem: Problem

    @classmethod
    def load(cls, folder: Path) -> "Refusal":
        return cls.model_validate_json((folder / PROBLEM_FILE).read_bytes())

    def save(self, folder: Path) -> None:
        (folder / PROBLEM_FILE).write_text(self.model_dump_json(indent=2), encoding="utf-8")


class AudioFacts(_Data):
    codec: str
    sample_rate: int
    channels: int
    duration_s: float


class VideoFacts(_Data):
    """Measured by decoding where metadata can lie (frames, duration, size), upright and square."""

    container: str
    codec: str
    pixel_format: str
    width: int
    height: int
    coded_width: int
    coded_height: int
    rotation_degrees: int = 0
    sample_aspect_ratio: str = "1:1"
    frame_rate: FrameRate | None = None
    variable_frame_rate: bool = False
    num_frames: int
    duration_s: float
    color: str
    """How colours were read, such as "bt709, limited range (untagged: assumed)"."""
    interlaced: bool = False
    audio: AudioFacts | None = None


class Became(_Data):
    """One training sample made from a clip."""

    sample: str
    start_s: float
    end_s: float
    num_source_frames: int
    """Frames of the clip that lie in this sample, before resampling."""
    num_frames: int
    frame_rate: FrameRate
    width: int
    height: int
    scaled_width: int
    scaled_height: int
    """The clip's whole frame after resize-to-cover, before the centre crop."""
    time_scale: float = 1.0
    """Above 1: played slower than the source, to fill the frame count."""
    audio: str | None = None
    """What was done to the sound, such as "stretched x1.21, peak -0.3 dBFS"."""
    mask: str | None = None
    """How the mask was fitted and how much it regenerates, where each clip brings one."""


class Dropped(_Data):
    """A short code (`too_short`, `unreadable`, ...) and a sentence for people."""

    reason: str
    message: str


class Caption(_Data):
    file: str | None
    text: str
    as_trained: str


class ClipReport(_Data):
    """One media file of the archive. Exactly one of ``became`` (non-empty) and ``dropped``."""

    name: str
    size_bytes: int
    kind: Literal["video", "image"]
    facts: VideoFacts | None = None
    caption: Caption
    became: tuple[Became, ...] = ()
    dropped: Dropped | None = None
    warnings: tuple[str, ...] = ()


class Ignored(_Data):
    """A file that is neither a clip nor a caption of one."""

    name: str
    reason: str


class ArchiveFacts(_Data):
    size_bytes: int
    sha256: str
    num_entries: int


class AudioDecision(_Data):
    trained: bool
    reason: str


class Totals(_Data):
    clips: int
    used: int
    dropped: int
    samples: int


class DatasetReport(_Data):
    """See the module's docstring. ``problem`` is set exactly when the dataset was refused."""

    version: Literal[1] = 1
    verdict: Literal["ok", "refused"]
    problem: Problem | None = None
    archive: ArchiveFacts
    settings: dict[str, object]
    """The rule it was prepared for."""
    totals: Totals
    audio: AudioDecision | None = None
    clips: tuple[ClipReport, ...] = ()
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> "DatasetReport":
        return cls.model_validate_json((folder / REPORT_FILE).read_bytes())

    def save(self, folder: Path) -> None:
        (folder / REPORT_FILE).write_text(self.model_dump_json(indent=2), encoding="utf-8")
