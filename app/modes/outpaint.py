"""Outpainting: the LoRA learns what lies around a kept rectangle (seed: outpaint).

The API gives corners [x, y] in pixels of the training frame; `KeepRectangle.cells` turns them into
latent cells, for the checks here as for the training. Always without sound.
"""

from decimal import Decimal
from typing import Annotated, Any, Final, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from app.modes import common
from app.modes.base import Training, ValidationSource
from app.modes.common import FRAME_SIZES
from app.modes.refusals import Refusal, refuse
from preprocessing.rules import LATENT_STRIDE_PIXELS, AudioPolicy, DatasetRule, ValidationRule
from trainer.spec import KeepRectangle, TrainingSpec

PATH: Final = "outpaint"

MAX_SHOWN: Final = 1_000_000
"""A message repeats no longer number."""


def _integers(value: Any) -> Any:
    """Blames the whole corner for a wrong number in it. How many there are is checked later."""
    if isinstance(value, list) and any(type(number) is not int for number in value):
        raise PydanticCustomError("int_type", "Input should be two integers, such as [128, 128]")
    return value


Corner = Annotated[list[int], Field(min_length=2, max_length=2), BeforeValidator(_integers)]
"""[x, y]: x to the right, y down."""


class OutpaintEntry(common.VideoEntry):
    """A preview: the video with everything around the kept rectangle made anew."""

    video_url: common.Url = Field(
        description=(
            "A full-canvas video. The rectangle, scaled to the validation size, is kept; its "
            "surround is outpainted."
        )
    )


class OutpaintRequest(common.TrainerRequest):
    """The 22 fields of ``/outpaint``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "training_data_url": "https://example.com/full_canvas_clips.zip",
                    "trigger_phrase": "",
                    "rank": 32,
                    "number_of_steps": 2000,
                    "learning_rate": 0.0002,
                    "crop_top_left": [128, 128],
                    "crop_bottom_right": [640, 640],
                    "number_of_frames": 89,
                    "frame_rate": 24,
                    "resolution": "medium",
                    "aspect_ratio": "1:1",
                    "validation": [
                        {
                            "prompt": "a chef in a busy kitchen",
                            "video_url": "https://example.com/scene.mp4",
                        }
                    ],
                }
            ]
        }
    )

    crop_top_left: Corner = Field(
        description=(
            "Top-left corner [x1, y1] of the kept rectangle, in pixels of the training frame that "
            "resolution and aspect_ratio choose. Snapped down to a multiple of 32."
        )
    )
    crop_bottom_right: Corner = Field(
        description=(
            "Bottom-right corner [x2, y2] of the kept rectangle, with x2 > x1 and y2 > y1, inside "
            "the training frame. Snapped down to a multiple of 32; what is kept then must be at "
            "least 32 pixels wide and high and leave a part of the frame to generate."
        )
    )
    validation: list[OutpaintEntry] = Field(
        [],
        max_length=common.MAX_PREVIEWS,
        description="Full-canvas videos to outpaint during training, at most two.",
    )

    @property
    def frame(self) -> tuple[int, int]:
        """Width and height of training clips."""
        return FRAME_SIZES[self.resolution, self.aspect_ratio]

    @property
    def preview_frame(self) -> tuple[int, int]:
        """Width and height of previews."""
        return FRAME_SIZES[self.validation_resolution, self.validation_aspect_ratio]

    @property
    def kept(self) -> KeepRectangle:
        """The corners as sent, in the frame they are meant in."""
        (left, top), (right, bottom) = self.crop_top_left, self.crop_bottom_right
        width, height = self.frame
        return KeepRectangle(
            left=left, top=top, right=right, bottom=bottom, frame_width=width, frame_height=height
        )

    @model_validator(mode="after")
    def _rectangle_fits(self) -> Self:
        refuse(self._outside() or self._useless() or self._useless_in_previews())
        return self

    def _outside(self) -> list[Refusal]:
        """Corners that lie outside the training frame or in the wrong order."""
        (left, top), (right, bottom) = self.crop_top_left, self.crop_bottom_right
        width, height = self.frame
        frame = (
            f"the {width}x{height} training frame (resolution {self.resolution}, aspect_ratio "
            f"{self.aspect_ratio})"
        )
        refusals = []
        for field, corner in self._corners().items():
            x, y = corner
            if not (0 <= x <= width and 0 <= y <= height):
                refusals.append(
                    _refusal(
                        field,
                        corner,
                        f"{_shown(corner)} lies outside {frame}. Use x from 0 to {width} and y "
                        f"from 0 to {height}: pixels of that frame, not of the uploaded video.",
                    )
                )
        if not refusals and (right <= left or bottom <= top):
            refusals.append(
                _refusal(
                    "crop_bottom_right",
                    self.crop_bottom_right,
                    f"{_shown(self.crop_bottom_right)} must lie to the right of and below "
                    f"crop_top_left {_shown(self.crop_top_left)}: x2 > x1 and y2 > y1, inside "
                    f"{frame}.",
                )
            )
        return refusals

    def _useless(self) -> list[Refusal]:
        """A rectangle that keeps nothing or everything after snapping."""
        if (problem := _problem(self.kept, self.frame)) is None:
            return []
        return [
            _refusal(
                "crop_bottom_right", self.crop_bottom_right, f"In training, {problem} {_ADVICE}"
            )
        ]

    def _useless_in_previews(self) -> list[Refusal]:
        """The same, scaled to the validation size. No previews, no problem."""
        if not self.validation or (problem := _problem(self.kept, self.preview_frame)) is None:
            return []
        return [
            _refusal(
                "validation_resolution",
                self.validation_resolution,
                f"In previews (validation_resolution {self.validation_resolution}, "
                f"validation_aspect_ratio {self.validation_aspect_ratio}), {problem} Use a larger "
                "validation_resolution, the validation_aspect_ratio of the training, or another "
                "rectangle.",
            )
        ]

    def _corners(self) -> dict[str, list[int]]:
        return {
            "crop_top_left": self.crop_top_left,
            "crop_bottom_right": self.crop_bottom_right,
        }


_ADVICE: Final = (
    f"Keep at least {LATENT_STRIDE_PIXELS} pixels each way and leave a margin of at least "
    f"{LATENT_STRIDE_PIXELS} on one side."
)


def _problem(kept: KeepRectangle, frame: tuple[int, int]) -> str | None:
    """What is wrong with the cells of a ``frame`` of (width, height) that are kept, if anything."""
    columns, rows = kept.cells(*frame)
    width, height = frame
    cell = LATENT_STRIDE_PIXELS
    kept_part = (
        f"[{columns.start * cell}, {rows.start * cell}] to [{columns.stop * cell}, "
        f"{rows.stop * cell}] of the {width}x{height} frame is kept after snapping to {cell} pixels"
    )
    if not columns or not rows:
        return f"{kept_part}, so nothing is kept."
    if len(columns) * cell == width and len(rows) * cell == height:
        return f"{kept_part}, so nothing is left to generate."
    return None


def _shown(corner: list[int]) -> str:
    """A corner as sent, without a screenful of digits."""
    return f"[{', '.join(str(n) if abs(n) <= MAX_SHOWN else '...' for n in corner)}]"


def _refusal(field: str, value: object, message: str) -> Refusal:
    return Refusal(field, "value_error", message, value)


def dataset_rule(request: OutpaintRequest) -> DatasetRule:
    """Full-canvas videos; a still has no clip to outpaint."""
    return common.dataset_rule(request, image_extensions=(), audio=AudioPolicy.OFF)


def training_spec(request: OutpaintRequest) -> TrainingSpec:
    """Given is the rectangle, the same in every frame."""
    return common.training_spec(request, PATH, conditions=(request.kept,))


def validation_rule(request: OutpaintRequest) -> ValidationRule | None:
    """Full-canvas videos."""
    return common.validation_rule(request)


def validation_sources(request: OutpaintRequest) -> list[ValidationSource]:
    """A video for each preview."""
    return [ValidationSource(entry.video_url) for entry in request.validation]


MODE: Final = Training(
    path=PATH,
    id="fal-ai/ltx23-trainer-v2/outpaint",
    title="LTX 2.3 Trainer, spatial outpainting",
    summary=(
        "Train a LoRA that keeps an inner rectangle of a video and generates everything around it."
    ),
    request_model=OutpaintRequest,
    dataset_rule=dataset_rule,
    training_spec=training_spec,
    validation_rule=validation_rule,
    validation_sources=validation_sources,
    price_per_unit=Decimal("0.006"),
)
