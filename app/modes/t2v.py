"""Text to video: the LoRA learns a subject or style, nothing of a clip is given (seed: t2v)."""

from decimal import Decimal
from typing import Final

from pydantic import ConfigDict, Field

from app.modes import common
from app.modes.base import Training
from preprocessing.rules import DatasetRule
from trainer.spec import TrainingSpec

PATH: Final = "t2v"
STEPS_MULTIPLE: Final = 100
"""Of this trainer only ("range 100-20000, in steps of 100")."""


class TextToVideoRequest(common.AudioFields, common.TrainerRequest):
    """The 23 fields of ``/t2v``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "training_data_url": "https://example.com/my_dataset.zip",
                    "trigger_phrase": "tronlog0",
                    "rank": 32,
                    "number_of_steps": 2000,
                    "learning_rate": 0.0002,
                    "number_of_frames": 89,
                    "frame_rate": 24,
                    "resolution": "medium",
                    "aspect_ratio": "1:1",
                    "validation": [
                        {"prompt": "tronlog0 spinning slowly on a dark background"},
                    ],
                }
            ]
        }
    )

    number_of_steps: int = Field(
        2000,
        ge=100,
        le=20_000,
        multiple_of=STEPS_MULTIPLE,
        description="Optimization steps to run, in steps of 100.",
    )
    validation: list[common.PromptEntry] = Field(
        [], max_length=common.MAX_PREVIEWS, description="Prompts to preview, at most two."
    )


def dataset_rule(request: TextToVideoRequest) -> DatasetRule:
    """Videos or images, with sound as ``with_audio`` says."""
    return common.dataset_rule(request, **common.audio_rule(request))


def training_spec(request: TextToVideoRequest) -> TrainingSpec:
    """Everything is generated: no conditions."""
    return common.training_spec(request, PATH)


MODE: Final = Training(
    path=PATH,
    id="fal-ai/ltx23-trainer-v2/t2v",
    title="LTX 2.3 Trainer, text to video",
    summary=(
        "Train a LoRA on your own clips or images, to generate whole videos from a text prompt."
    ),
    request_model=TextToVideoRequest,
    dataset_rule=dataset_rule,
    training_spec=training_spec,
    price_per_unit=Decimal("0.006"),
)
