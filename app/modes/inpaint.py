"""Inpainting: the LoRA learns to fill what each clip's mask marks (seed: inpaint).

White is to be regenerated, black is kept. Always without sound: the page has no audio fields.
"""

from decimal import Decimal
from typing import Final

from pydantic import ConfigDict, Field

from app.modes import common
from app.modes.base import Training, ValidationSource
from preprocessing.rules import VIDEO_EXTENSIONS, AudioPolicy, DatasetRule, ValidationRule
from trainer.spec import SampleMask, TrainingSpec

PATH: Final = "inpaint"


class InpaintEntry(common.VideoEntry):
    """A preview: the video with its marked region made anew."""

    video_url: common.Url = Field(description="The source video to inpaint.")
    mask_url: common.Url = Field(
        description=(
            "The mask, an image or a video of any resolution. White: regenerate, black: keep."
        )
    )


class InpaintRequest(common.TrainerRequest):
    """The 20 fields of ``/inpaint``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "training_data_url": "https://example.com/inpaint_examples.zip",
                    "trigger_phrase": "",
                    "rank": 32,
                    "number_of_steps": 2000,
                    "learning_rate": 0.0002,
                    "number_of_frames": 89,
                    "frame_rate": 24,
                    "resolution": "medium",
                    "aspect_ratio": "1:1",
                    "validation": [
                        {
                            "prompt": "a person walking",
                            "video_url": "https://example.com/source.mp4",
                            "mask_url": "https://example.com/mask.png",
                        }
                    ],
                }
            ]
        }
    )

    training_data_url: common.Url = Field(
        description=(
            "URL of the .zip archive: clips, for each its mask <name>_mask (an image or a video) "
            "and, optionally, its caption <name>.txt. File names are unique in the archive."
        )
    )
    split_input_into_scenes: bool = Field(
        False,
        description="No effect: scenes would lose their masks. Upload clips that are split.",
    )
    split_input_duration_threshold: float = Field(
        30.0, ge=1.0, le=60.0, description="No effect, as split_input_into_scenes has none."
    )
    validation: list[InpaintEntry] = Field(
        [],
        max_length=common.MAX_PREVIEWS,
        description="Videos with their masks to inpaint during training, at most two.",
    )


def dataset_rule(request: InpaintRequest) -> DatasetRule:
    """Videos, each with its mask, never split."""
    return common.dataset_rule(
        request,
        video_extensions=(*VIDEO_EXTENSIONS, ".webm"),
        image_extensions=(),
        split_scenes=False,
        audio=AudioPolicy.OFF,
        masks=True,
        unique_names=True,
    )


def training_spec(request: InpaintRequest) -> TrainingSpec:
    """Given is what the clip's mask keeps."""
    return common.training_spec(request, PATH, conditions=(SampleMask(),))


def validation_rule(request: InpaintRequest) -> ValidationRule | None:
    """Videos with masks."""
    return common.validation_rule(request, masks=True)


def validation_sources(request: InpaintRequest) -> list[ValidationSource]:
    """A video and its mask for each preview."""
    return [ValidationSource(entry.video_url, entry.mask_url) for entry in request.validation]


MODE: Final = Training(
    path=PATH,
    id="fal-ai/ltx23-trainer-v2/inpaint",
    title="LTX 2.3 Trainer, video inpainting",
    summary=(
        "Train a LoRA that regenerates a masked region of a video and keeps everything around it."
    ),
    request_model=InpaintRequest,
    dataset_rule=dataset_rule,
    training_spec=training_spec,
    validation_rule=validation_rule,
    validation_sources=validation_sources,
    price_per_unit=Decimal("0.0024"),
)
