"""Fields that generations share, with fal's defaults and ranges (`fal-protocol.md` 3.4).

Not a mode itself. Types are as strict as the trainers' (`common.py`); bounds that no page gives are
ours and say why.
"""

from fractions import Fraction
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, model_validator
from pydantic_core import PydanticCustomError

from app.modes import canvas, common
from app.modes.canvas import MAX_PIXELS, MAX_SIDE, MIN_SIDE, Canvas
from app.modes.refusals import Refusal, refuse
from trainer.generation import MAX_LORAS, Encoding, exact_frame_rate

MAX_LORA_BYTES: Final = 3 * 1024**3
"""The page's 3 GB, in its larger reading."""
MAX_LORA_SCALE: Final = 4.0
"""Either way. The page gives no bounds; a LoRA that acts four times as strongly as it was trained
leaves nothing of the picture."""
MAX_INLINE_BYTES: Final = 20 * 10**6
"""Of a video that the reply itself carries; as base64 it is a third larger."""
MAX_SEED: Final = 2**53 - 1
"""The largest whole number that JavaScript reads as it was written."""

NEGATIVE_PROMPT: Final = (
    "color distortion, overexposure, static, blurry details, subtitles, style, artwork, painting, "
    "frame, still, dim overall tone, worst quality, low quality, JPEG compression artifacts, ugly, "
    "mutilated, extra fingers, poorly drawn hands, poorly drawn face, deformed, disfigured, "
    "malformed limbs, fused fingers, motionless frame, cluttered background, three legs, crowded "
    "background, walking backwards"
)
"""The page's."""


class ImageSize(common.Input):
    """An exact size. The model works on the next multiple of 32, and the result is cut back."""

    width: int = Field(
        512, ge=MIN_SIDE, le=MAX_SIDE, multiple_of=2, description="Pixels, an even number."
    )
    height: int = Field(
        512, ge=MIN_SIDE, le=MAX_SIDE, multiple_of=2, description="Pixels, an even number."
    )

    @model_validator(mode="after")
    def _is_not_too_large(self) -> "ImageSize":
        if self.width * self.height > MAX_PIXELS:
            refuse(
                [
                    Refusal(
                        "height",
                        "less_than_equal",
                        f"{self.width}x{self.height} has more than {MAX_PIXELS} pixels. Use a "
                        f"height of at most {MAX_PIXELS // self.width // 2 * 2} with this width.",
                        self.height,
                        {"le": MAX_PIXELS // self.width // 2 * 2},
                    )
                ]
            )
        return self


def _size(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Blames the part that is wrong, where a union would blame each of its members."""
    if isinstance(value, dict):
        return ImageSize.model_validate(value)
    if isinstance(value, ImageSize) or (
        isinstance(value, str) and value in (*canvas.PRESETS, "auto")
    ):
        return handler(value)
    presets = ", ".join(f"'{name}'" for name in (*canvas.PRESETS, "auto"))
    raise PydanticCustomError(
        "literal_error",
        "Input should be {expected}",
        {"expected": f"{presets} or an object with width and height"},
    )


Size = Annotated[ImageSize | canvas.Preset, WrapValidator(_size)]


class LoRAInput(common.Input):
    """One LoRA of a generation."""

    path: common.Url = Field(
        description=(
            "URL of the .safetensors file, at most 3 GB: `lora_file.url` of a training here, or "
            "any public one."
        )
    )
    scale: float = Field(
        1.0, ge=-MAX_LORA_SCALE, le=MAX_LORA_SCALE, description="How strongly it acts."
    )
    transformer: Literal["both", "high", "low"] = Field(
        "both", description="Taken as fal takes it; LTX-2.3 has one transformer, so all mean that."
    )


class GenerationRequest(common.Input):
    """What every generation takes. Subclasses add what they start from."""

    prompt: common.Prompt = Field(description="What the video shows.")
    num_frames: int = Field(121, ge=9, le=481, description="Frames of the video.")
    frames_per_second: float = Field(24.0, ge=1.0, le=60.0, description="Its frame rate.")
    num_inference_steps: int = Field(
        15, ge=8, le=30, description="Sampling steps. More are slower and finer."
    )
    guidance_scale: float = Field(
        1.0,
        ge=1.0,
        le=20.0,
        description=(
            "Classifier-free guidance. 1 is the fast default and ignores negative_prompt; above "
            "it, every step runs the model twice."
        ),
    )
    generate_audio: bool = Field(
        True, description="Make sound, too. Without it the MP4 has no audio track."
    )
    negative_prompt: common.Prompt = Field(
        NEGATIVE_PROMPT, description="What the video should not show."
    )
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="For the same video again. null: a random one."
    )
    enable_prompt_expansion: bool = Field(
        True,
        description=(
            "Let the model's own text encoder write more of the prompt; the reply has what was "
            "used. Off where the loaded model can't, which the log says."
        ),
    )
    enable_safety_checker: bool = Field(
        True,
        description=(
            "Show the result to the operator's classifier. Off where none is set up, which the log "
            "says."
        ),
    )
    video_quality: Literal["low", "medium", "high", "maximum"] = Field(
        "high", description="How much of the picture the encoder keeps."
    )
    video_write_mode: Literal["fast", "balanced", "small"] = Field(
        "balanced", description="How hard the encoder works: `small` takes longest."
    )
    sync_mode: bool = Field(
        False,
        description=(
            "Return the video in the reply, as a data URI. For short clips: up to "
            f"{MAX_INLINE_BYTES // 10**6} MB."
        ),
    )
    loras: list[LoRAInput] = Field(
        min_length=1, max_length=MAX_LORAS, description="LoRAs to apply together, one to three."
    )

    @property
    def frame_rate(self) -> Fraction:
        """Exact, as containers have it."""
        return exact_frame_rate(self.frames_per_second)

    @property
    def encoding(self) -> Encoding:
        return Encoding(quality=self.video_quality, write_mode=self.video_write_mode)


def canvas_of(size: ImageSize | canvas.Preset) -> Canvas | None:
    """In pixels; None where only the source can tell."""
    if isinstance(size, ImageSize):
        return Canvas(size.width, size.height)
    return canvas.PRESETS.get(size)
