"""Text to video: the LoRA learns a subject or style, nothing of a clip is given (seed: t2v)."""

from decimal import Decimal
from typing import Final

from pydantic import Field

from app.modes import common
from app.modes.base import Mode
from preprocessing.rules import DatasetRule
from trainer.spec import TrainingSpec

PATH: Final = "t2v"
STEPS_MULTIPLE: Final = 100
"""Of this trainer only ("range 100-20000, in steps of 100")."""


class TextToVideoRequest(common.AudioFields, common.TrainerRequest):
    """The 23 fields of ``/t2v``."""

    number_of_steps: int = Field(
        2000,
        ge=100,
        le=20_000,
        multiple_of=STEPS_MULTIPLE,
        description="Optimization steps to run, in steps of 100.",
    )


def dataset_rule(request: TextToVideoRequest) -> DatasetRule:
    """Videos or images, with sound as ``with_audio`` says."""
    return common.dataset_rule(request, **common.audio_rule(request))


def training_spec(request: TextToVideoRequest) -> TrainingSpec:
    """Everything is generated: no conditions."""
    return common.training_spec(request, PATH)


T2V: Final = Mode(
    path=PATH,
    id="fal-ai/ltx23-trainer-v2/t2v",
    title="LTX 2.3 Trainer, text to video",
    summary=(
        "Train a LoRA on your own clips or images, to generate whole videos from a text prompt."
    ),
    request_model=TextToVideoRequest,
    dataset_rule=dataset_rule,
    training_spec=training_spec,
    price_per_step=Decimal("0.006"),
)
