"""What to train: plain data, importable by the gateway (no torch).

A mode of the API is nothing but a choice of these values; nothing below this file knows modes.
"""

from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from preprocessing.rules import LATENT_STRIDE_PIXELS

NATIVE_FRAME_RATE: Final = 24
"""LTX-2.3's own rate, in frames per second."""

DEFAULT_SEED: Final = 42


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Suffix(_Data):
    """The last ``num_latent_frames`` are given (clean); covers 8 pixel frames each."""

    kind: Literal["suffix"] = "suffix"
    num_latent_frames: int = Field(ge=1)


class Prefix(_Data):
    """The first ``num_latent_frames`` are given; they cover 8n - 7 pixel frames."""

    kind: Literal["prefix"] = "prefix"
    num_latent_frames: int = Field(ge=1)


class KeepRectangle(_Data):
    """The same rectangle of every frame is given. Pixels of the training frame, x right, y down;
    edges are floored to latent cells (32 px) after scaling to the frame at hand."""

    kind: Literal["keep_rectangle"] = "keep_rectangle"
    left: int = Field(ge=0)
    top: int = Field(ge=0)
    right: int = Field(ge=1)
    bottom: int = Field(ge=1)
    frame_width: int
    frame_height: int
    """The frame the coordinates are meant in."""

    def cells(self, width: int, height: int) -> tuple[range, range]:
        """Latent columns and rows that are given in a frame of ``width`` x ``height`` pixels.

        >>> KeepRectangle(left=128, top=128, right=640, bottom=640, frame_width=768,
        ...     frame_height=768).cells(960, 544)  # 160..800 and 90..453
        (range(5, 25), range(2, 14))
        """

        def along(start: int, end: int, meant_in: int, size: int) -> range:
            scale = meant_in * LATENT_STRIDE_PIXELS
            last = size // LATENT_STRIDE_PIXELS
            return range(min(start * size // scale, last), min(end * size // scale, last))

        return (
            along(self.left, self.right, self.frame_width, width),
            along(self.top, self.bottom, self.frame_height, height),
        )


class SampleMask(_Data):
    """Each sample brings its own mask of what to regenerate."""

    kind: Literal["sample_mask"] = "sample_mask"


Condition = Annotated[Suffix | Prefix | KeepRectangle | SampleMask, Field(discriminator="kind")]
"""What of the clip the model is given. No condition: everything is generated (t2v)."""


class ValidationPrompt(_Data):
    """One preview. Where the task needs a source clip, the job's validation folder holds one for
    each prompt, in the same order."""

    prompt: str


class ValidationSpec(_Data):
    """How previews are sampled (`ltx-training.md` 2.5)."""

    prompts: tuple[ValidationPrompt, ...] = ()
    negative_prompt: str = ""
    num_frames: int = Field(ge=1)
    frame_rate: int = Field(ge=1)
    width: int
    height: int
    num_inference_steps: int = Field(default=30, ge=1)
    video_guidance_scale: float = 3.0
    audio_guidance_scale: float = 7.0
    stg_scale: float = Field(default=1.0, ge=0)
    modality_scale: float = 3.0
    rescale: float = 0.7
    seed: int = DEFAULT_SEED
    at: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Fractions of the steps after which previews are made; 1.0 is always among them."""


class TrainingSpec(_Data):
    """One LoRA training. Equal specs on equal datasets give equal weights (CPU, same machine)."""

    training_type: str
    """The mode's name, for metadata and messages only."""
    trigger_phrase: str = ""
    rank: int = Field(ge=1)
    num_steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    conditions: tuple[Condition, ...] = ()
    seed: int = DEFAULT_SEED
    max_grad_norm: float = 1.0
    final_lr_fraction: float = 0.1
    """Linear decay from 1 to this over all steps."""
    weight_decay: float = 0.01
    validation: ValidationSpec


class Wish(StrEnum):
    """What a training may be asked for on its way; its result is the same with it and without."""

    SAVE = "save"
    """A checkpoint after the current step."""
    SAMPLE = "sample"
    """Previews after the current step."""
