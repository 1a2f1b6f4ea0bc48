"""What to generate: plain data, importable by the gateway (no torch).

A generation is what a preview is, asked for by a user: a prompt, adapters, and what of a source
clip is given. The service's endpoint and ``python -m trainer generate`` both end here.
"""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LORAS: Final = 3
"""fal's limit for one generation."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraChoice(_Data):
    """One adapter: a safetensors file on disk, and how strongly it acts."""

    path: Path
    """Absolute, or relative to the job directory."""
    name: str
    """What the user called it, for messages and logs."""
    scale: float = 1.0


class Outpaint(_Data):
    """The source, scaled into the middle of the canvas, is given; its surround is generated."""

    kind: Literal["outpaint"] = "outpaint"
    source_scale: float = Field(default=0.75, ge=0.25, le=1.0)
    """Of the largest size at which the source fits into the canvas, its shape kept."""


class Inpaint(_Data):
    """The source is given where the mask is black; where it is white, it is generated."""

    kind: Literal["inpaint"] = "inpaint"


class ExtendSuffix(_Data):
    """The source's last frames are given as the end of the clip."""

    kind: Literal["extend_suffix"] = "extend_suffix"
    num_latent_frames: int = Field(ge=1)


class ExtendPrefix(_Data):
    """The source's last frames are given as the start of the clip."""

    kind: Literal["extend_prefix"] = "extend_prefix"
    num_latent_frames: int = Field(ge=1)


Task = Annotated[Outpaint | Inpaint | ExtendSuffix | ExtendPrefix, Field(discriminator="kind")]


class Encoding(_Data):
    """How the MP4 is written: fal's ``video_quality`` and ``video_write_mode``."""

    quality: Literal["low", "medium", "high", "maximum"] = "high"
    write_mode: Literal["fast", "balanced", "small"] = "balanced"


class GenerationSpec(_Data):
    """One video. Equal specs on equal sources give equal latents (same machine)."""

    prompt: str
    negative_prompt: str = ""
    width: int
    """Pixels of the result, any even number; the model works on the next grid size and the result
    is cut back."""
    height: int
    num_frames: int = Field(ge=1)
    """Of the result, any number; generated on the model's grid of 8n + 1 and cut back."""
    frame_rate: Fraction
    num_inference_steps: int = Field(default=15, ge=1)
    guidance_scale: float = 1.0
    seed: int
    task: Task | None = None
    """What of the source is given. None: text to video."""
    strength: float = Field(default=1.0, ge=0.0, le=1.0)
    """How firmly what is given is held: 1 exactly, 0 not at all."""
    with_audio: bool = True
    encoding: Encoding = Encoding()
    soft_seam_pixels: int | None = 16
    """Lay the source's own pixels over the given region, with a seam this wide; None: do not."""
    expand_prompt: bool = False
    check_safety: bool = False
    loras: tuple[LoraChoice, ...] = Field(default=(), max_length=MAX_LORAS)
