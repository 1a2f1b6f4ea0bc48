"""What to generate: plain data, importable by the gateway (no torch).

A generation is what a preview is, asked for by a user: a prompt, adapters, and what of a source
clip is given. The service's endpoint and ``python -m trainer generate`` both end here.
"""

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from preprocessing.rules import LATENT_STRIDE_FRAMES, FrameRate, SourceRule

MAX_LORAS: Final = 3
"""fal's limit for one generation."""

MIN_SOURCE_FRAMES: Final = 9
"""Of the source, at the frame rate asked for: less is a still, not a clip. fal's least count."""

_BROADCAST_RATES: Final = tuple(Fraction(rate * 1000, 1001) for rate in (24, 30, 48, 60))
_ROUNDED: Final = Fraction(1, 200)
"""Frames per second by which a rate written in decimals may miss the one that is meant."""


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class LoraChoice(_Data):
    """One adapter: a safetensors file on disk, and how strongly it acts."""

    path: Path
    """Absolute, or relative to the job directory."""
    name: str
    """What the user called it, for messages and logs."""
    scale: float = Field(default=1.0, allow_inf_nan=False)
    transformer: Literal["both", "high", "low"] = "both"
    """Which pass of a two-pass model. There is one pass here, so all three mean it; the log says
    so for the other two."""


class Outpaint(_Data):
    """The source, scaled into the middle of the canvas, is given; its surround is generated."""

    kind: Literal["outpaint"] = "outpaint"
    source_scale: float = Field(default=0.75, ge=0.25, le=1.0)
    """Of the largest size at which the source fits into the canvas, its shape kept."""


class Inpaint(_Data):
    """The source is given where the mask is black; where it is white, it is generated."""

    kind: Literal["inpaint"] = "inpaint"


class ExtendSuffix(_Data):
    """A window of the source is given as the end of the clip: 8 frames for each latent frame."""

    kind: Literal["extend_suffix"] = "extend_suffix"
    num_latent_frames: int = Field(ge=1)
    window: Literal["first", "last"] = "last"
    """Which end of the source it is. fal's is the last: the source is a closing clip. The first
    continues a longer source backward."""


class ExtendPrefix(_Data):
    """A window of the source is given as the start of the clip: 8n - 7 frames for n latent
    frames."""

    kind: Literal["extend_prefix"] = "extend_prefix"
    num_latent_frames: int = Field(ge=1)
    window: Literal["first", "last"] = "last"
    """Which end of the source it is. The last continues the source where it ends."""


Task = Annotated[Outpaint | Inpaint | ExtendSuffix | ExtendPrefix, Field(discriminator="kind")]


class Encoding(_Data):
    """How the MP4 is written: fal's ``video_quality`` and ``video_write_mode``."""

    quality: Literal["low", "medium", "high", "maximum"] = "high"
    write_mode: Literal["fast", "balanced", "small"] = "balanced"


class SafetyClassifier(_Data):
    """An image classifier that says what must not be returned: a local folder with ``config.json``
    and weights, as transformers' ``AutoModelForImageClassification`` reads it."""

    folder: Path
    unsafe_labels: tuple[str, ...] = ("nsfw", "unsafe", "porn", "hentai", "explicit")
    """Of the model's labels, case ignored; labels it does not have are ignored."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability of all unsafe labels together from which a frame is unsafe."""


class GenerationSpec(_Data):
    """One video. Equal specs on equal sources give equal latents (same machine)."""

    prompt: str
    negative_prompt: str = ""
    """Read where ``guidance_scale`` is not 1."""
    width: int = Field(ge=32, multiple_of=2)
    """Pixels of the result, any even number; the model works on the next grid size and the result
    is cut back."""
    height: int = Field(ge=32, multiple_of=2)
    num_frames: int = Field(ge=1)
    """Of the result, any number; generated on the model's grid of 8n + 1 and cut back. Where the
    whole source is given (outpaint, inpaint), the result is not longer than the source."""
    frame_rate: FrameRate
    num_inference_steps: int = Field(default=15, ge=1)
    guidance_scale: float = Field(default=1.0, ge=1.0, allow_inf_nan=False)
    """Classifier-free guidance; 1 is none, and one pass per step less."""
    seed: int = Field(ge=0, lt=2**63)
    task: Task | None = None
    """What of the source is given. None: text to video."""
    strength: float = Field(default=1.0, ge=0.0, le=1.0)
    """How firmly what is given is held: 1 exactly, 0 not at all."""
    with_audio: bool = True
    encoding: Encoding = Encoding()
    soft_seam_pixels: int | None = Field(default=16, ge=0, le=32)
    """Lay the source's own pixels over the given region, with a seam this wide inside it; None: do
    not. Not done below strength 1, which asks for a changed source."""
    expand_prompt: bool = False
    check_safety: bool = False
    loras: tuple[LoraChoice, ...] = Field(default=(), max_length=MAX_LORAS)


class GenerationResult(_Data):
    """``outputs/generation.json``: what was made of the spec."""

    seed: int
    prompt: str
    """As the model got it, after any expansion."""
    prompt_expanded: bool
    safety: Literal["off", "unavailable", "passed"]
    """``unavailable``: a check was asked for, and there is no classifier."""
    width: int
    height: int
    num_frames: int
    """Of the file: fewer than asked for where the source ended before."""
    frame_rate: FrameRate
    with_audio: bool
    notes: tuple[str, ...] = ()
    """What a user should know, in sentences; all of it was logged."""


def exact_frame_rate(number: float) -> Fraction:
    """The rate that is meant by a decimal number: 23.976 is 24000/1001.

    >>> [str(exact_frame_rate(n)) for n in (24, 23.976, 29.97, 12.5)]
    ['24', '24000/1001', '30000/1001', '25/2']
    """
    exact = Fraction(number)
    for rate in _BROADCAST_RATES:
        if exact.denominator != 1 and abs(exact - rate) < _ROUNDED:
            return rate
    return exact.limit_denominator(1000)


def num_passes(guidance_scale: float) -> int:
    """Of the model, in one step: with guidance the negative prompt is another."""
    return 1 if guidance_scale == 1 else 2


def num_result_frames(spec: GenerationSpec, source_frames: int) -> int:
    """Of a video whose prepared source has so many: it ends where a source that is given as a whole
    does."""
    if isinstance(spec.task, Outpaint | Inpaint):
        return min(spec.num_frames, source_frames)
    return spec.num_frames


def source_rule(spec: GenerationSpec) -> SourceRule | None:
    """What ``spec`` asks of its source's preparation; None where nothing is given."""
    if spec.task is None or spec.strength == 0:
        return None
    num_frames = spec.num_frames
    window: Literal["first", "last"] = "first"
    match spec.task:
        case ExtendSuffix(num_latent_frames=count):
            num_frames, window = count * LATENT_STRIDE_FRAMES, spec.task.window
        case ExtendPrefix(num_latent_frames=count):
            num_frames, window = (count - 1) * LATENT_STRIDE_FRAMES + 1, spec.task.window
    in_time = isinstance(spec.task, ExtendSuffix | ExtendPrefix)
    return SourceRule(
        width=spec.width,
        height=spec.height,
        frame_rate=spec.frame_rate,
        num_frames=num_frames,
        min_frames=num_frames if in_time else min(MIN_SOURCE_FRAMES, num_frames),
        window=window,
        source_scale=spec.task.source_scale if isinstance(spec.task, Outpaint) else None,
        masks=isinstance(spec.task, Inpaint),
        with_audio=in_time and spec.with_audio,
    )
