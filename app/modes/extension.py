"""What extensions in time share: a window of frames is kept, the rest is generated.

Not a mode itself. A mode says which end is kept and how many frames are a whole number of latents.
"""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from app.modes import common
from app.modes.base import ValidationSource
from app.modes.refusals import Refusal, refuse
from preprocessing.rules import LATENT_STRIDE_FRAMES, DatasetRule, snap_num_frames


class ExtensionRequest(common.AudioFields, common.TrainerRequest):
    """Fields of every extension; a mode narrows ``conditioning_frames``."""

    conditioning_frames: int
    with_audio: bool = Field(
        False,
        description=(
            "Extend sound as well: every training and validation clip must have some. false: "
            "sound is ignored and the extension is silent."
        ),
    )
    validation: Sequence[common.VideoEntry] = Field([], max_length=common.MAX_PREVIEWS)

    @model_validator(mode="after")
    def _something_is_left_to_generate(self) -> Self:
        kept = self.conditioning_frames
        refusals = []
        if kept >= (frames := self.number_of_frames):
            refusals.append(
                Refusal(
                    "conditioning_frames",
                    "less_than",
                    f"{kept} kept frames leave nothing to generate of training clips of {frames} "
                    f"frames. Lower conditioning_frames{_or_raise('number_of_frames', kept)}",
                    kept,
                    {"lt": frames},
                )
            )
        if kept >= (frames := self.validation_number_of_frames):
            name = "validation_number_of_frames"
            refusals.append(
                Refusal(
                    name,
                    "greater_than",
                    f"Previews of {frames} frames leave nothing to generate beside {kept} kept "
                    f"frames. Lower conditioning_frames{_or_raise(name, kept)}",
                    frames,
                    {"gt": kept},
                )
            )
        refuse(refusals)
        return self


def _or_raise(name: str, kept: int) -> str:
    """Advice with the least count that leaves something, where the API allows that many."""
    enough = snap_num_frames(kept) + LATENT_STRIDE_FRAMES
    return f" or raise {name} to {enough}." if enough <= common.MAX_NUM_FRAMES else "."


def dataset_rule(request: ExtensionRequest) -> DatasetRule:
    """Videos only: a still can't be extended in time."""
    return common.dataset_rule(request, image_extensions=(), **common.audio_rule(request))


def validation_sources(request: ExtensionRequest) -> list[ValidationSource]:
    """A video for each preview."""
    return [ValidationSource(entry.video_url) for entry in request.validation]
