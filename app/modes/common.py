"""Fields that the trainers share, with fal's defaults, ranges and rules (`fal-protocol.md` 3.1).

Types are strict: 2000.0, "2000" and true are no integers, 1 is no boolean. Keys that no field has
are ignored, and of a key given twice the last counts, as fal's own endpoints do it.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

from preprocessing.rules import AudioPolicy, DatasetRule, ValidationRule, snap_num_frames
from trainer.spec import TrainingSpec, ValidationPrompt, ValidationSpec

MAX_URL_CHARACTERS: Final = 8_192
"""A presigned URL with session credentials has some 2,000."""
MAX_PROMPT_CHARACTERS: Final = 5_000
"""More than the text encoder's 1,024 tokens can hold."""
MAX_TRIGGER_CHARACTERS: Final = 500
"""It stands before every caption, which needs room as well."""

MIN_LEARNING_RATE: Final = 1e-8
"""Below, 20,000 steps change no adapter visibly. The page gives no bounds."""
MAX_LEARNING_RATE: Final = 0.1
"""500 times the default; AdamW moves every weight by about this much per step."""

MAX_NUM_FRAMES: Final = 121
"""Of a clip or a preview: five seconds at 24 frames per second."""
MAX_PREVIEWS: Final = 2
"""Entries of ``validation``."""

DEFAULT_NEGATIVE_PROMPT: Final = (
    "blurry, out of focus, overexposed, underexposed, low contrast, washed out colors, excessive "
    "noise, grainy texture, poor lighting, flickering, motion blur, distorted proportions, "
    "unnatural skin tones, deformed facial features, asymmetrical face, missing facial features, "
    "extra limbs, disfigured hands, wrong hand count, artifacts around text, inconsistent "
    "perspective, camera shake, incorrect depth of field, background too sharp, background "
    "clutter, distracting reflections, harsh shadows, inconsistent lighting direction, color "
    "banding, cartoonish rendering, 3D CGI look, unrealistic materials, uncanny valley effect, "
    "incorrect ethnicity, wrong gender, exaggerated expressions, wrong gaze direction, mismatched "
    "lip sync, silent or muted audio, distorted voice, robotic voice, echo, background noise, "
    "off-sync audio, incorrect dialogue, added dialogue, repetitive speech, jittery movement, "
    "awkward pauses, incorrect timing, unnatural transitions, inconsistent framing, tilted camera, "
    "flat lighting, inconsistent tone, cinematic oversaturation, stylized filters, or AI artifacts."
)
"""LTX-2's own, as diffusers has it (``diffusers/pipelines/ltx2/utils.py``, Apache-2.0)."""

Resolution = Literal["low", "medium", "high"]
AspectRatio = Literal["16:9", "1:1", "9:16"]

FRAME_SIZES: Final[dict[tuple[str, str], tuple[int, int]]] = {
    ("low", "16:9"): (512, 288),
    ("low", "1:1"): (512, 512),
    ("low", "9:16"): (288, 512),
    ("medium", "16:9"): (768, 448),
    ("medium", "1:1"): (768, 768),
    ("medium", "9:16"): (448, 768),
    ("high", "16:9"): (960, 544),
    ("high", "1:1"): (960, 960),
    ("high", "9:16"): (544, 960),
}
"""(resolution, aspect ratio) -> (width, height) in pixels."""

AUDIO_POLICIES: Final = {
    None: AudioPolicy.AUTO,
    True: AudioPolicy.REQUIRED,
    False: AudioPolicy.OFF,
}
"""``with_audio`` -> what it means for a dataset."""


_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BREAK: Final = re.compile(r"[\t\n\r\u2028\u2029]")
_NOT_IN_URL: Final = re.compile(r"[\x00-\x20\\]")


def _printable(value: str) -> str:
    """No control characters except in multi-line text: they break logs, files and tokenizers."""
    if (found := _CONTROL.search(value)) is not None:
        raise PydanticCustomError(
            "value_error",
            "Control character U+{code} is not allowed",
            {"code": f"{ord(found[0]):04X}"},
        )
    return value


def _one_line(value: str) -> str:
    if _BREAK.search(value):
        raise PydanticCustomError("value_error", "A line break or tab is not allowed here")
    return _printable(value)


def _url(value: str) -> str:
    """An absolute http(s) URL. Where it leads is checked when it is opened, by address."""
    if _NOT_IN_URL.search(_one_line(value)):
        raise PydanticCustomError("url_parsing", "A URL has no spaces and no backslashes")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise PydanticCustomError(
            "url_parsing", "Not a valid URL: {error}", {"error": str(error)[:100]}
        ) from None
    if parts.scheme not in ("http", "https"):
        raise PydanticCustomError("url_scheme", "The URL must begin with https:// or http://")
    if not host:
        raise PydanticCustomError("url_parsing", "The URL names no host")
    return value


def _integer(value: Any) -> Any:
    """``Literal[32]`` compares, so it would take 32.0 as well."""
    if type(value) is not int:
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


Url = Annotated[
    str,
    Field(max_length=MAX_URL_CHARACTERS, json_schema_extra={"format": "uri"}),
    AfterValidator(_url),
]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS), AfterValidator(_printable)]
TriggerPhrase = Annotated[
    str,
    Field(max_length=MAX_TRIGGER_CHARACTERS),
    AfterValidator(_one_line),
    StringConstraints(strip_whitespace=True),
]
Rank = Annotated[Literal[8, 16, 32, 64, 128], BeforeValidator(_integer)]
NumFrames = Annotated[int, Field(ge=9, le=MAX_NUM_FRAMES), AfterValidator(snap_num_frames)]
"""Snapped down to 8k + 1, not rejected: what a request holds is the count that is used."""
Rate = Annotated[int, Field(ge=8, le=60)]


class Input(BaseModel):
    """Base of everything that comes from outside."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)


class PromptEntry(Input):
    """One preview to make during training."""

    prompt: Prompt = Field(description="The text prompt to preview.")


class VideoEntry(PromptEntry):
    """A preview that is made from a video of the user's."""

    video_url: Url = Field(description="The video to make the preview from.")


class TrainerRequest(Input):
    """What every trainer takes. Subclasses add fields and narrow some."""

    training_data_url: Url = Field(
        description="URL of the .zip archive with the training clips and, optionally, captions."
    )
    trigger_phrase: TriggerPhrase = Field(
        "", description="Put before every caption; at inference it calls up what was learned."
    )

    rank: Rank = Field(
        32, description="Capacity of the LoRA. More holds more detail and overfits sooner."
    )
    number_of_steps: int = Field(2000, ge=100, le=20_000, description="Optimization steps to run.")
    learning_rate: float = Field(
        0.0002,
        ge=MIN_LEARNING_RATE,
        le=MAX_LEARNING_RATE,
        description="How far each step moves the weights.",
    )

    number_of_frames: NumFrames = Field(
        89,
        description="Frames of each training video; snapped down to 8k + 1, such as 81, 89, 97.",
    )
    frame_rate: Rate = Field(
        24, description="Frames per second of training videos; the model's native rate is 24."
    )
    resolution: Resolution = Field(
        "medium", description="With aspect_ratio, the pixel size of the training clips."
    )
    aspect_ratio: AspectRatio = Field("1:1", description="Aspect ratio of the training clips.")
    auto_scale_input: bool = Field(
        False,
        description="Fit videos to number_of_frames and frame_rate instead of dropping short ones.",
    )
    split_input_into_scenes: bool = Field(
        True, description="Split videos longer than the threshold at their scene cuts."
    )
    split_input_duration_threshold: float = Field(
        30.0, ge=1.0, le=60.0, description="Seconds above which a video is split into scenes."
    )

    validation: Sequence[PromptEntry] = Field([], max_length=MAX_PREVIEWS)
    """Each trainer narrows this to a list of what its previews need."""
    validation_negative_prompt: Prompt = Field(
        DEFAULT_NEGATIVE_PROMPT, description="Negative prompt of all previews."
    )
    validation_number_of_frames: NumFrames = Field(
        89, description="Frames per preview; snapped down to 8k + 1."
    )
    validation_frame_rate: Rate = Field(24, description="Frames per second of the previews.")
    validation_resolution: Resolution = Field(
        "high", description="With validation_aspect_ratio, the pixel size of the previews."
    )
    validation_aspect_ratio: AspectRatio = Field("1:1", description="Aspect ratio of the previews.")
    stg_scale: float = Field(
        1.0,
        ge=0.0,
        le=3.0,
        description="Spatio-temporal guidance of the previews; 0 switches it off.",
    )
    debug_dataset: bool = Field(
        False, description="Also return an archive of the prepared training data."
    )


class AudioFields(Input):
    """For trainers that can learn sound."""

    with_audio: bool | None = Field(
        None,
        description=(
            "Train sound as well. null: if every clip has sound. true: fail if a clip has none."
        ),
    )
    audio_normalize: bool = Field(True, description="Bring every soundtrack to the same peak.")
    audio_preserve_pitch: bool = Field(
        True, description="Stretch sound to the clip's length instead of cutting or padding it."
    )


def dataset_rule(request: TrainerRequest, **more: Any) -> DatasetRule:
    """The rule of the shared fields; ``more`` sets or overrides what is special to a mode."""
    width, height = FRAME_SIZES[request.resolution, request.aspect_ratio]
    shared = {
        "num_frames": request.number_of_frames,
        "frame_rate": request.frame_rate,
        "width": width,
        "height": height,
        "auto_scale": request.auto_scale_input,
        "split_scenes": request.split_input_into_scenes,
        "split_threshold_s": request.split_input_duration_threshold,
        "trigger_phrase": request.trigger_phrase,
    }
    return DatasetRule(**{**shared, **more})


def audio_rule(request: AudioFields) -> dict[str, Any]:
    """The audio part of a `DatasetRule`."""
    return {
        "audio": AUDIO_POLICIES[request.with_audio],
        "audio_normalize": request.audio_normalize,
        "audio_preserve_pitch": request.audio_preserve_pitch,
    }


def validation_rule(request: TrainerRequest, **more: Any) -> ValidationRule | None:
    """What previews ask of their videos; None where no previews are to be made."""
    if not request.validation:
        return None
    width, height = FRAME_SIZES[request.validation_resolution, request.validation_aspect_ratio]
    return ValidationRule(
        num_frames=request.validation_number_of_frames,
        frame_rate=request.validation_frame_rate,
        width=width,
        height=height,
        **more,
    )


def training_spec(request: TrainerRequest, training_type: str, **more: Any) -> TrainingSpec:
    """The spec of the shared fields; ``more`` adds conditions."""
    width, height = FRAME_SIZES[request.validation_resolution, request.validation_aspect_ratio]
    return TrainingSpec(
        training_type=training_type,
        trigger_phrase=request.trigger_phrase,
        rank=request.rank,
        num_steps=request.number_of_steps,
        learning_rate=request.learning_rate,
        validation=ValidationSpec(
            prompts=tuple(ValidationPrompt(prompt=entry.prompt) for entry in request.validation),
            negative_prompt=request.validation_negative_prompt,
            num_frames=request.validation_number_of_frames,
            frame_rate=request.validation_frame_rate,
            width=width,
            height=height,
            stg_scale=request.stg_scale,
        ),
        **more,
    )
