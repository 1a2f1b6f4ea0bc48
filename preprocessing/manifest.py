"""The prepared dataset on disk: the one type that `preprocessing` writes and `trainer` reads.

DIR/manifest.json
DIR/report.json                  the dataset report (`report.py`)
DIR/samples/0001.frames.npy      uint8 [F, H, W, 3], RGB, C order, to be memory-mapped
DIR/samples/0001.audio.npy       float32 [2, S] in [-1, 1], where audio is trained
DIR/samples/0001.keep_mask.npy   bool [f, h, w], latent cells that are given, where clips have masks
DIR/validation.json              of `prepare_validation`, with DIR/clips/0.frames.npy and so on
DIR/source.json                  of `prepare_source`, with DIR/source.frames.npy and so on
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from preprocessing.rules import FrameRate as FrameRate

MANIFEST_FILE = "manifest.json"
REPORT_FILE = "report.json"
VALIDATION_FILE = "validation.json"
SOURCE_FILE = "source.json"


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Audio(_Data):
    """One sample's soundtrack, as long as its frames: S = round(F / frame_rate * sample_rate)."""

    path: str
    sample_rate: int


class Sample(_Data):
    """One training sample. Paths are relative to the dataset's folder."""

    id: str
    frames: str
    audio: Audio | None = None
    keep_mask: str | None = None
    """What of the sample is given, reduced to latent cells (`preprocessing/latent_mask.py`)."""
    caption: str
    """As trained: the trigger phrase is already in it."""
    frame_rate: FrameRate
    """Rate at which these frames play, for the positions; 24 for a still image."""
    source: str
    """Name of the clip in the archive."""


class Manifest(_Data):
    """What was prepared. All samples of a dataset have the same size and frame count."""

    version: Literal[1] = 1
    kind: Literal["video", "image"]
    width: int
    height: int
    num_frames: int
    with_audio: bool
    samples: tuple[Sample, ...]

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read ``folder``'s manifest. Raises `pydantic.ValidationError` on a foreign version."""
        return cls.model_validate_json((folder / MANIFEST_FILE).read_bytes())

    def save(self, folder: Path) -> None:
        (folder / MANIFEST_FILE).write_text(self.model_dump_json(indent=2), encoding="utf-8")


class ValidationClip(_Data):
    """The source of one preview, fitted to the validation size. Paths as in `Sample`."""

    frames: str
    """uint8 [F, H, W, 3] with F = 8k + 1, at most the validation's frame count."""
    audio: Audio | None = None
    keep_mask: str | None = None
    num_frames: int
    frame_rate: FrameRate


class ValidationManifest(_Data):
    """One clip for each validation entry, in their order."""

    version: Literal[1] = 1
    clips: tuple[ValidationClip, ...]

    @classmethod
    def load(cls, folder: Path) -> "ValidationManifest":
        return cls.model_validate_json((folder / VALIDATION_FILE).read_bytes())

    def save(self, folder: Path) -> None:
        (folder / VALIDATION_FILE).write_text(self.model_dump_json(indent=2), encoding="utf-8")


class Placement(_Data):
    """Where the source's frames lie in the canvas, in pixels. Left and top are multiples of 32;
    right and bottom too, or they are the canvas's own."""

    left: int
    top: int
    width: int
    height: int


class SourceManifest(_Data):
    """The clip that a generation starts from, as `preprocessing.rules.SourceRule` asked for it.

    The canvas is the part of the model's grid that is shown: the grid goes on to the next multiple
    of 32 to the right and below.
    """

    version: Literal[1] = 1
    frames: str
    """uint8 [num_frames, placement.height, placement.width, 3]."""
    audio: Audio | None = None
    """As long as the frames; None where it was not asked for, or the clip has none."""
    keep_mask: str | None = None
    """bool [f, h, w] of ``num_frames`` held on to 8k + 1, on the grid; where there is a mask."""
    width: int
    height: int
    placement: Placement
    num_frames: int
    """Any number: as many as were asked for and are there."""
    frame_rate: FrameRate
    notes: tuple[str, ...] = ()
    """What was done to the clip that its user might not expect, in sentences."""

    @classmethod
    def load(cls, folder: Path) -> "SourceManifest":
        return cls.model_validate_json((folder / SOURCE_FILE).read_bytes())

    def save(self, folder: Path) -> None:
        (folder / SOURCE_FILE).write_text(self.model_dump_json(indent=2), encoding="utf-8")
