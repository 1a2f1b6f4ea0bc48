"""Extension backward in time: the LoRA learns the lead-in to a clip's last frames.

Source: seed extend-suffix; `ltx-training.md` 1.4 (pixel frames to latent frames).
"""

from decimal import Decimal
from typing import Final

from pydantic import ConfigDict, Field

from app.modes import common, extension
from app.modes.base import Training
from preprocessing.rules import LATENT_STRIDE_FRAMES, ValidationRule
from trainer.spec import Suffix, TrainingSpec

PATH: Final = "extend-suffix"


class ExtendSuffixEntry(common.VideoEntry):
    """A preview: the video with a new lead-in."""

    video_url: common.Url = Field(
        description=(
            "The video to extend backward; its last conditioning_frames frames are kept, and it "
            "must have that many at validation_frame_rate."
        )
    )


class ExtendSuffixRequest(extension.ExtensionRequest):
    """The 24 fields of ``/extend-suffix``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "training_data_url": "https://example.com/clips.zip",
                    "trigger_phrase": "",
                    "rank": 32,
                    "number_of_steps": 2000,
                    "learning_rate": 0.0002,
                    "conditioning_frames": 8,
                    "number_of_frames": 89,
                    "frame_rate": 24,
                    "resolution": "medium",
                    "aspect_ratio": "1:1",
                    "with_audio": False,
                    "validation": [
                        {
                            "prompt": "a person approaching a door",
                            "video_url": "https://example.com/closing.mp4",
                        }
                    ],
                }
            ]
        }
    )

    conditioning_frames: int = Field(
        8,
        ge=8,
        le=121,
        multiple_of=LATENT_STRIDE_FRAMES,
        description=(
            "Last frames of each clip that are kept, a multiple of 8 and fewer than "
            "number_of_frames and validation_number_of_frames: at most 88 of 89."
        ),
    )
    validation: list[ExtendSuffixEntry] = Field(
        [],
        max_length=common.MAX_PREVIEWS,
        description="Videos to extend backward during training, at most two.",
    )


def training_spec(request: ExtendSuffixRequest) -> TrainingSpec:
    """Given are the last frames; every latent frame but the clip's first covers 8 of them."""
    kept = Suffix(num_latent_frames=request.conditioning_frames // LATENT_STRIDE_FRAMES)
    return common.training_spec(request, PATH, conditions=(kept,))


def validation_rule(request: ExtendSuffixRequest) -> ValidationRule | None:
    """The true end of each video, at least the frames to keep."""
    return common.validation_rule(
        request,
        anchor="end",
        min_frames=request.conditioning_frames,
        with_audio=request.with_audio,
        audio_normalize=request.audio_normalize,
    )


MODE: Final = Training(
    path=PATH,
    id="fal-ai/ltx23-trainer-v2/extend-suffix",
    title="LTX 2.3 Trainer, backward video extension",
    summary="Train a LoRA that generates the lead-in to a closing clip, with sound if you like.",
    request_model=ExtendSuffixRequest,
    dataset_rule=extension.dataset_rule,
    training_spec=training_spec,
    validation_rule=validation_rule,
    validation_sources=extension.validation_sources,
    price_per_unit=Decimal("0.0061"),
)
