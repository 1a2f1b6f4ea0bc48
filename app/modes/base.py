"""What a mode is: everything the service needs to know about one kind of training."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Generic, TypeAlias, TypeVar

from app.modes.common import TrainerRequest
from preprocessing.rules import DatasetRule, ValidationRule
from trainer.spec import TrainingSpec

R = TypeVar("R", bound=TrainerRequest)

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


@dataclass(frozen=True)
class Mode(Generic[R]):
    """One kind of training behind one pair of paths, ``/{path}`` and ``/{id}``."""

    path: str
    id: str
    """fal's endpoint id: owner, alias and path."""
    title: str
    summary: str
    request_model: type[R]
    dataset_rule: Callable[[R], DatasetRule]
    training_spec: Callable[[R], TrainingSpec]
    price_per_step: Decimal
    """US dollars that fal asks; shown, never charged."""
    validation_rule: Callable[[R], ValidationRule | None] = no_rule
    """None: no preview of this request needs a source."""
    validation_sources: Callable[[R], list[ValidationSource]] = no_sources
    """One for each entry of ``validation``, in their order; none where the rule is None."""

    @property
    def app(self) -> str:
        """``owner/alias``: what status, result and cancel URLs keep of the id."""
        return "/".join(self.id.split("/")[:2])

    def parse(self, stored: dict[str, Any]) -> R:
        """The request out of a row's ``input``. Raises `pydantic.ValidationError`."""
        return self.request_model.model_validate(stored)

    def billable_units(self, request: R) -> int:
        """Units of a successful run; a failed one has none."""
        return max(MIN_BILLABLE_UNITS, request.number_of_steps)


AnyMode: TypeAlias = Mode[Any]
