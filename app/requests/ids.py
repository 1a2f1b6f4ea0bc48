"""Ids as callers name them: of requests, and of rows that a request has many of."""

import re
from typing import Annotated, Final

from fastapi import Path, Query

FORM: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""Of every id, as a regular expression."""
MAX_ID_CHARACTERS: Final = 64
"""Longer than any id; what is longer names no request."""

NO_NUL: Final = r"^[^\x00]*$"
"""PostgreSQL can't even be asked for a text with NUL."""
IdInPath = Annotated[str, Path(max_length=MAX_ID_CHARACTERS, pattern=NO_NUL)]

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
