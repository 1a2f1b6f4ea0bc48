"""What a training asks of its dataset: plain data, importable by the gateway (no torch, no av)."""

from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

VIDEO_EXTENSIONS: Final = (".mp4", ".mov", ".avi", ".mkv")
"""The page's list for clips (fal, `/t2v`, Dataset Format)."""
IMAGE_EXTENSIONS: Final = (".png", ".jpg", ".jpeg")

MASK_IMAGE_EXTENSIONS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
"""The page's list for a mask that holds for every frame (fal, `/inpaint`)."""
MASK_SUFFIX: Final = "_mask"
"""`clip01.mp4` has its mask in `clip01_mask.<ext>`."""

LATENT_STRIDE_FRAMES: Final = 8
"""Pixel frames per latent frame after the first (causal video VAE)."""
LATENT_STRIDE_PIXELS: Final = 32
"""Pixels per latent cell, both ways."""


def _to_fraction(value: object) -> Fraction:
    return value if isinstance(value, Fraction) else Fraction(str(value))


FrameRate = Annotated[Fraction, BeforeValidator(_to_fraction), PlainSerializer(str)]
"""Frames per second, exact; "30000/1001" in JSON."""


class AudioPolicy(StrEnum):
    """All-or-nothing over the dataset: `with_audio` null, true and false."""

    AUTO = "auto"
    REQUIRED = "required"
    OFF = "off"


def snap_num_frames(num_frames: int) -> int:
    """The nearest valid frame count at or below ``num_frames``: 8k + 1.

    >>> [snap_num_frames(n) for n in (9, 10, 89, 96, 120, 121)]
    [9, 9, 89, 89, 113, 121]
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")
    return (num_frames - 1) // LATENT_STRIDE_FRAMES * LATENT_STRIDE_FRAMES + 1


class DatasetRule(BaseModel):
    """One training's demands on an archive; a mode makes it from its request.

    Two rules that are equal give equal prepared datasets, so the rule's JSON (with the archive's
    hash) is the key of the prepared-dataset cache. What does not shape the prepared data
    (rank, steps) is not in here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: int = Field(ge=1, description="pixel frames per sample, 8k + 1")
    frame_rate: int = Field(ge=1, description="frames per second asked for")
    width: int = Field(ge=LATENT_STRIDE_PIXELS, multiple_of=LATENT_STRIDE_PIXELS)
    height: int = Field(ge=LATENT_STRIDE_PIXELS, multiple_of=LATENT_STRIDE_PIXELS)

    video_extensions: tuple[str, ...] = VIDEO_EXTENSIONS
    image_extensions: tuple[str, ...] = IMAGE_EXTENSIONS
    """Empty where images are rejected (outpaint, extend)."""

    auto_scale: bool = False
    split_scenes: bool = True
    split_threshold_s: float = Field(default=30.0, gt=0)

    audio: AudioPolicy = AudioPolicy.AUTO
    audio_normalize: bool = True
    audio_preserve_pitch: bool = True

    trigger_phrase: str = ""

    masks: bool = False
    """Every clip brings `<name>_mask`, an image or a video: white is to be regenerated."""
    unique_names: bool = False
    """No base name twice in the whole archive, subfolders included."""

    @model_validator(mode="after")
    def _frames_are_a_latent_count(self) -> "DatasetRule":
        if self.num_frames != snap_num_frames(self.num_frames):
            raise ValueError(f"num_frames must be 8k + 1, not {self.num_frames}")
        return self


class ValidationRule(BaseModel):
    """What previews ask of the clips they are made from; a mode makes it from its request.

    Clips play at ``frame_rate`` at their true speed. With ``anchor`` start, the first
    ``num_frames`` are taken (fewer where the clip ends before: snapped down to 8k + 1); with end,
    the last ones, filled up in front to 8k + 1 by repeating the first of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_frames: int = Field(ge=1, description="frames of the preview, 8k + 1")
    frame_rate: int = Field(ge=1)
    width: int = Field(ge=LATENT_STRIDE_PIXELS, multiple_of=LATENT_STRIDE_PIXELS)
    height: int = Field(ge=LATENT_STRIDE_PIXELS, multiple_of=LATENT_STRIDE_PIXELS)
    anchor: Literal["start", "end"] = "start"
    min_frames: int = Field(default=9, ge=1)
    """A clip with fewer, at ``frame_rate``, is refused: the kept window of an extension."""
    masks: bool = False
    with_audio: bool = False
    """Every clip must have sound, and it is prepared along."""
    audio_normalize: bool = True


class SourceRule(BaseModel):
    """What a generation asks of the clip that it starts from.

    The clip plays at ``frame_rate`` at its true speed. Its first ``num_frames`` are taken, or its
    last ones (``window``); fewer where it has fewer, but at least ``min_frames``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    width: int = Field(ge=LATENT_STRIDE_PIXELS, multiple_of=2)
    """Pixels of the canvas: of the result, on the grid or not."""
    height: int = Field(ge=LATENT_STRIDE_PIXELS, multiple_of=2)
    num_frames: int = Field(ge=1)
    frame_rate: FrameRate
    min_frames: int = Field(default=1, ge=1)
    window: Literal["first", "last"] = "first"
    source_scale: float | None = Field(default=None, gt=0, le=1)
    """Of the largest size at which the clip fits into the canvas; it is placed in the middle, on
    the latent grid. None: the clip covers the canvas and its middle is taken."""
    masks: bool = False
    """A mask comes with the clip: white is to be regenerated."""
    with_audio: bool = False
    """Take the clip's sound along, where it has some."""
