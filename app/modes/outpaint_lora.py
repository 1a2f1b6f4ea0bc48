"""Outpainting with LoRAs: a video in the middle of a larger canvas, its surround generated.

Source: seed ltx-2.3-quality-outpaint-lora; `fal-protocol.md` 3.4, 3.5 and 4b.
"""

from decimal import Decimal
from typing import Any, Final, get_args

from pydantic import ConfigDict, Field, model_validator

from app.modes import canvas, common, generation
from app.modes.base import Generation
from app.modes.canvas import Canvas, Lines, Shape
from trainer.generation import GenerationSpec, LoraChoice, Outpaint

PATH: Final = "outpaint/lora"
DEFAULT_SHAPE: Final = "16:9"
DEFAULT_LINES: Final = "720p"


class OutpaintLoraRequest(generation.GenerationRequest):
    """The 20 fields of ``/outpaint/lora``: the page's, and the two that fal's client knows."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "prompt": (
                        "A cinematic wide shot of the same scene, extending the environment "
                        "naturally beyond the original frame."
                    ),
                    "video_url": "https://example.com/scene.mp4",
                    "resolution": "landscape_16_9",
                    "source_scale": 0.75,
                    "video_strength": 1,
                    "num_frames": 121,
                    "frames_per_second": 24,
                    "num_inference_steps": 15,
                    "guidance_scale": 1,
                    "generate_audio": True,
                    "loras": [
                        {
                            "path": "https://example.com/path/to/lora.safetensors",
                            "scale": 1,
                            "transformer": "both",
                        }
                    ],
                }
            ]
        }
    )

    prompt: common.Prompt = Field(
        description="The prompt to guide the outpainted video generation."
    )
    video_url: common.Url = Field(description="The source video to outpaint.")
    resolution: generation.Size = Field(
        "landscape_16_9",
        description=(
            "Size of the canvas: an object with width and height, square_hd (1024x1024), square "
            "(512x512), portrait_4_3 (768x1024), portrait_16_9 (576x1024), landscape_4_3 "
            "(1024x768), landscape_16_9 (1024x576), or auto: in the source's shape, with about the "
            "area of landscape_16_9."
        ),
    )
    aspect_ratio: Shape = Field(
        DEFAULT_SHAPE,
        description="With output_resolution, another way to say the size; resolution goes before.",
    )
    output_resolution: Lines = Field(
        DEFAULT_LINES, description="Pixels of the canvas's shorter side, as in 1280x720."
    )
    source_scale: float = Field(
        0.75,
        ge=0.25,
        le=1.0,
        description=(
            "Size of the source in the middle of the canvas. 1 is the largest that fits; 0.75 "
            "leaves a border to generate on all sides."
        ),
    )
    video_strength: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="How firmly the source is kept: 1 exactly, less lets it change along.",
    )

    @model_validator(mode="before")
    @classmethod
    def _size_in_other_words(cls, given: Any) -> Any:
        """Of ``aspect_ratio`` and ``output_resolution`` where one was sent and ``resolution`` was
        not: the row then holds the size itself, and reads back as what it is."""
        names = ("aspect_ratio", "output_resolution")
        if not isinstance(given, dict) or "resolution" in given or not given.keys() & set(names):
            return given
        shape = given.get("aspect_ratio", DEFAULT_SHAPE)
        lines = given.get("output_resolution", DEFAULT_LINES)
        if shape not in get_args(Shape) or lines not in get_args(Lines):
            return given  # the field's own error says so
        size = canvas.of_shape(shape, lines)
        return {**given, "resolution": {"width": size.width, "height": size.height}}


def canvas_of(request: OutpaintLoraRequest) -> Canvas | None:
    """What ``resolution`` names; None for ``auto``."""
    return generation.canvas_of(request.resolution)


def generation_spec(
    request: OutpaintLoraRequest, size: Canvas, seed: int, loras: tuple[LoraChoice, ...]
) -> GenerationSpec:
    """Given is the source in the middle of the canvas."""
    return GenerationSpec(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=size.width,
        height=size.height,
        num_frames=request.num_frames,
        frame_rate=request.frame_rate,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        seed=seed,
        task=Outpaint(source_scale=request.source_scale),
        strength=request.video_strength,
        with_audio=request.generate_audio,
        encoding=request.encoding,
        expand_prompt=request.enable_prompt_expansion,
        check_safety=request.enable_safety_checker,
        loras=loras,
    )


MODE: Final = Generation(
    path=PATH,
    id="fal-ai/ltx-2.3-quality/outpaint/lora",
    title="LTX 2.3 outpainting with LoRAs",
    summary=(
        "Place a video in a larger canvas and generate its surround with LoRAs that you trained."
    ),
    request_model=OutpaintLoraRequest,
    canvas=canvas_of,
    source_url=lambda request: request.video_url,
    generation_spec=generation_spec,
    price_per_unit=Decimal("0.0024075"),
)
