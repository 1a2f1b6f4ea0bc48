"""What a mode is: everything the service needs to know about one thing that it does.

Mode
├── Training      a dataset becomes a LoRA
└── Generation    a source clip, LoRAs and a prompt become a video
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from pydantic import BaseModel

from app.modes.canvas import Canvas
from app.modes.common import Input, TrainerRequest
from app.modes.generation import GenerationRequest
from app.modes.outputs import CheckOutput, SourceCheckOutput, TrainerOutput, VideoOutput
from preprocessing.rules import DatasetRule, ValidationRule
from trainer.generation import GenerationSpec, LoraChoice
from trainer.spec import TrainingSpec

R = TypeVar("R", bound=Input)
T = TypeVar("T", bound=TrainerRequest)
G = TypeVar("G", bound=GenerationRequest)

NamedUrl: TypeAlias = tuple[tuple[str | int, ...], str]
"""Where in a request a URL stands, below its body, and the URL."""

MIN_BILLABLE_UNITS = 100
"""The shortest training is billed as this many steps (the pages' "Billing")."""


@dataclass(frozen=True)
class ValidationSource:
    """Where one preview's material is to be fetched from."""

    video_url: str
    mask_url: str | None = None
    """An image or a video; None where the mode has no masks."""


def no_rule(request: TrainerRequest) -> ValidationRule | None:
    """For modes whose previews come from the prompt alone."""
    return None


def no_sources(request: TrainerRequest) -> list[ValidationSource]:
    """For modes whose previews come from the prompt alone."""
    return []


@dataclass(frozen=True, kw_only=True)
class Mode(ABC, Generic[R]):
    """One thing the service does, behind one pair of paths, ``/{path}`` and ``/{id}``."""

    category: ClassVar[str]
    """As fal's documents call the kind of endpoint."""
    unit: ClassVar[str]
    """What is billed."""
    gpu_stage: ClassVar[str]
    """What users read of the stage that follows the preparation."""
    check_title: ClassVar[str]
    check_summary: ClassVar[str]
    """Of ``POST /{path}/check``: the same body, prepared and reported on, and nothing else."""
    output_model: ClassVar[type[BaseModel]]
    check_model: ClassVar[type[BaseModel]]
    stand_ins: ClassVar[Mapping[str, Any]]
    """Required fields that an estimate does without, and values that take their place."""

    path: str
    id: str
    """fal's endpoint id: owner, alias and path."""
    title: str
    summary: str
    request_model: type[R]
    price_per_unit: Decimal
    """US dollars that fal asks; shown, never charged."""

    @property
    def app(self) -> str:
        """``owner/alias``: what status, result and cancel URLs keep of the id."""
        return "/".join(self.id.split("/")[:2])

    def parse(self, stored: dict[str, Any]) -> R:
        """The request out of a row's ``input``. Raises `pydantic.ValidationError`."""
        return self.request_model.model_validate(stored)

    @abstractmethod
    def urls(self, request: R) -> Iterator[NamedUrl]:
        """Everything that is fetched for a request."""


@dataclass(frozen=True, kw_only=True)
class Training(Mode[T]):
    """One kind of training."""

    category: ClassVar[str] = "training"
    unit: ClassVar[str] = "step"
    gpu_stage: ClassVar[str] = "train"
    check_title: ClassVar[str] = "check a dataset"
    check_summary: ClassVar[str] = (
        "Takes the body of a training and prepares its dataset as the training would, without "
        "training and for free. The result is the dataset report; what a training would refuse, "
        "this refuses with the same 422. A training submitted afterwards uses what was prepared "
        "here."
    )
    output_model: ClassVar[type[BaseModel]] = TrainerOutput
    check_model: ClassVar[type[BaseModel]] = CheckOutput
    stand_ins: ClassVar[Mapping[str, Any]] = {"training_data_url": "https://example.com/none.zip"}

    dataset_rule: Callable[[T], DatasetRule]
    training_spec: Callable[[T], TrainingSpec]
    validation_rule: Callable[[T], ValidationRule | None] = no_rule
    """None: no preview of this request needs a source."""
    validation_sources: Callable[[T], list[ValidationSource]] = no_sources
    """One for each entry of ``validation``, in their order; none where the rule is None."""

    def urls(self, request: T) -> Iterator[NamedUrl]:
        """The dataset, and what previews start from."""
        yield ("training_data_url",), request.training_data_url
        for index, source in enumerate(self.validation_sources(request)):
            yield ("validation", index, "video_url"), source.video_url
            if source.mask_url is not None:
                yield ("validation", index, "mask_url"), source.mask_url

    def billable_units(self, request: T) -> int:
        """Steps that a successful run is billed as; a failed one has none."""
        return max(MIN_BILLABLE_UNITS, request.number_of_steps)


@dataclass(frozen=True, kw_only=True)
class Generation(Mode[G]):
    """One kind of generation. All start from one source clip so far."""

    category: ClassVar[str] = "video-to-video"
    unit: ClassVar[str] = "megapixel"
    gpu_stage: ClassVar[str] = "generate"
    check_title: ClassVar[str] = "check a source and LoRAs"
    check_summary: ClassVar[str] = (
        "Takes the body of a generation, fetches its source and its LoRAs and looks at them as the "
        "generation would, without generating and for free. The result says what they are; what a "
        "generation would refuse, this refuses with the same 422. A generation submitted "
        "afterwards uses what was fetched here."
    )
    output_model: ClassVar[type[BaseModel]] = VideoOutput
    check_model: ClassVar[type[BaseModel]] = SourceCheckOutput
    stand_ins: ClassVar[Mapping[str, Any]] = {
        "prompt": "none",
        "video_url": "https://example.com/none.mp4",
        "loras": [{"path": "https://example.com/none.safetensors"}],
    }

    canvas: Callable[[G], Canvas | None]
    """None: only the source's shape tells."""
    source_url: Callable[[G], str]
    generation_spec: Callable[[G, Canvas, int, tuple[LoraChoice, ...]], GenerationSpec]
    """Of a request, the canvas, a seed, and the LoRAs' files."""

    def urls(self, request: G) -> Iterator[NamedUrl]:
        """The source, and the LoRAs."""
        yield ("video_url",), self.source_url(request)
        for index, lora in enumerate(request.loras):
            yield ("loras", index, "path"), lora.path

    def billable_units(self, size: Canvas, num_frames: int) -> int:
        """Megapixels that a successful run is billed as, by the video that it made."""
        return size.megapixels(num_frames)


AnyMode: TypeAlias = Mode[Any]
AnyTraining: TypeAlias = Training[Any]
AnyGeneration: TypeAlias = Generation[Any]
