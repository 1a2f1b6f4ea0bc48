"""Ids as callers name them: of requests, and of rows that a request has many of."""

import re
from typing import Annotated, Final

from fastapi import Path, Query
from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

FORM: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Of every id, as a regular expression."""
MAX_ID_CHARACTERS: Final = 64
"""Longer than any id; what is longer names no request."""


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise PydanticCustomError("value_error", "An id has no NUL character")
    return text


AnId = Annotated[
    str, AfterValidator(_without_nul), Field(json_schema_extra={"pattern": r"^[^\x00]*$"})
]
"""PostgreSQL can't even be asked for a text with NUL. The pattern is for documents: as a rule of
pydantic's it would be the message."""
IdInPath = Annotated[AnId, Path(max_length=MAX_ID_CHARACTERS)]

MAX_ROW_ID: Final = (1 << 63) - 1
"""What the database's integers hold."""
RowId = Annotated[int, Query(ge=0, le=MAX_ROW_ID)]
"""Of an event or a log line; 0 is before the first."""

_form = re.compile(FORM)


def is_id(text: str) -> bool:
    """Whether a request could have this id.

    >>> is_id("0f8fad5b-d9cb-469f-a165-70867728950e"), is_id("..")
    (True, False)
    """
    return _form.fullmatch(text) is not None
