"""Column types that hold whatever a worker or a user throws at them, alike on both databases."""

import math
from typing import Any

from pydantic_core import PydanticSerializationError, to_json
from sqlalchemy import JSON, Dialect, Text
from sqlalchemy.types import TypeDecorator


def clean_text(value: str) -> str:
    """``value`` without what PostgreSQL or UTF-8 can't hold: NUL and lone surrogates."""
    if value.isascii() and "\x00" not in value:
        return value
    return value.replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def clean_json(value: Any) -> Any:
    """``value`` as JSON can say it: NaN and infinities become null, text is cleaned."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    return value


def dump_json(value: Any) -> str:
    """The text of `clean_json`. What needs no cleaning, as nearly all, is only written down."""
    try:
        text = to_json(value, inf_nan_mode="null").decode()
    except PydanticSerializationError:  # a lone surrogate
        text = to_json(clean_json(value)).decode()
    # As JSON escapes it.
    return text if "\\u0000" not in text else to_json(clean_json(value)).decode()


class CleanText(TypeDecorator[str]):
    """Text of any length; see `clean_text`."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_text(value)


class CleanJSON(TypeDecorator[Any]):
    """JSON. Python's ``None`` is SQL's NULL. Engines are made with `dump_json` as serializer."""

    impl = JSON(none_as_null=True)
    cache_ok = True
