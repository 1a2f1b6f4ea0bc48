"""Extension forward in time: the LoRA learns what follows a clip's first frames.

fal's sibling of extend-suffix (`fal-protocol.md` 3.3). The first latent frame covers one pixel
frame and the later ones 8 each, so a whole number of latents is 8k + 1 frames.
"""

from decimal import Decimal
from typing import Annotated, Final

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from app.modes import common, extension
from app.modes.base import Training
from preprocessing.rules import LATENT_STRIDE_FRAMES, ValidationRule, snap_num_frames
from trainer.spec import Prefix, TrainingSpec

PATH: Final = "extend-prefix"


def _whole_latents(value: int) -> int:
    if value != (below := snap_num_frames(value)):
        raise PydanticCustomError(
            "value_error",
            "conditioning_frames must be 8k + 1: use {below} or {above}",
            {"below": below, "above": below + LATENT_STRIDE_FRAMES},
        )
    return value


class ExtendPrefixEntry(common.VideoEntry):
    """A preview: the video with a new continuation."""

    video_url: common.Url = Field(
        description=(
            "The video to extend forward; its first conditioning_frames frames are kept, and it "
            "must have that many at validation_frame_rate."
        )
    )


class ExtendPrefixRequest(extension.ExtensionRequest):
    """The 24 fields of ``/extend-prefix``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "training_data_url": "https://example.com/clips.zip",
                    "number_of_steps": 2000,
                    "conditioning_frames": 9,
                    "number_of_frames": 89,
                    "with_audio": False,
                    "validation": [
                        {
                            "prompt": "a person walks through a door",
                            "video_url": "https://example.com/opening.mp4",
                        }
                    ],
                }
            ]
        }
    )

    conditioning_frames: Annotated[int, AfterValidator(_whole_latents)] = Field(
        9,
        ge=9,
        le=121,
        description=(
            "First frames of each clip that are kept: 9, 17, 25, ..., and fewer than "
            "number_of_frames and validation_number_of_frames: at most 81 of 89."
        ),
    )
    validation: list[ExtendPrefixEntry] = Field(
        [],
        max_length=common.MAX_PREVIEWS,
        description="Videos to extend forward during training, at most two.",
    )


def training_spec(request: ExtendPrefixRequest) -> TrainingSpec:
    """Given are the first frames."""
    count = (request.conditioning_frames - 1) // LATENT_STRIDE_FRAMES + 1
    return common.training_spec(request, PATH, conditions=(Prefix(num_latent_frames=count),))


def validation_rule(request: ExtendPrefixRequest) -> ValidationRule | None:
    """The beginning of each video, at least the frames to keep."""
    return common.validation_rule(
        request,
        anchor="start",
        min_frames=request.conditioning_frames,
        with_audio=request.with_audio,
        audio_normalize=request.audio_normalize,
    )


MODE: Final = Training(
    path=PATH,
    id="fal-ai/ltx23-trainer-v2/extend-prefix",
    title="LTX 2.3 Trainer, forward video extension",
    summary="Train a LoRA that continues an opening clip, with sound if you like.",
    request_model=ExtendPrefixRequest,
    dataset_rule=extension.dataset_rule,
    training_spec=training_spec,
    validation_rule=validation_rule,
    validation_sources=extension.validation_sources,
    price_per_unit=Decimal("0.0061"),
)
