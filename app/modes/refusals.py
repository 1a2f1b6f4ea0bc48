"""Errors that only a whole request shows: fields that are fine alone and wrong beside others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError


@dataclass(frozen=True)
class Refusal:
    """One field to blame, in fal's terms (`fal-protocol.md` 2.6)."""

    field: str
    type: str
    message: str
    value: object
    ctx: dict[str, Any] | None = None


def refuse(refusals: Sequence[Refusal]) -> None:
    """Raises `pydantic.ValidationError` with the fields' own ``loc`` if there are refusals.

    For "after" validators of a whole model: what they raise has no ``loc`` otherwise.
    """
    if refusals:
        raise ValidationError.from_exception_data(
            "request",
            [
                InitErrorDetails(
                    type=PydanticCustomError(refusal.type, refusal.message, refusal.ctx or {}),
                    loc=(refusal.field,),
                    input=refusal.value,
                )
                for refusal in refusals
            ],
        )
