"""How a failed stage ends: fal's error body, and whether trying again could help."""

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from app.errors import model_error

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(eq=False)
class Failure(Exception):
    """Ends a stage. A user's fault is a 422 that no retry can mend; ours a 500 that one may."""

    status: int
    body: Mapping[str, Any]
    error: str
    error_type: str
    retryable: bool
    field: str = ""
    """The request field whose change mends it."""


def users_fault(
    message: str, *, error_type: str, field: str, ctx: Mapping[str, object] | None = None
) -> Failure:
    """``field`` is the request field whose change mends it."""
    body = model_error(error_type, message, field, ctx)
    return Failure(422, body, message, error_type, retryable=False, field=field)


def our_fault(message: str, *, error_type: str = "internal_server_error") -> Failure:
    """The text says what the user can do, if anything; the details are in the worker's log."""
    return Failure(500, model_error(error_type, message), message, error_type, retryable=True)


def unforeseen(error: Exception) -> Failure:
    """What nobody caught, by what it was."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return our_fault(
            "The worker's disk is full; nothing is billed. A smaller dataset may fit.",
            error_type="worker_disk_full",
        )
    return our_fault("Something failed on our side; nothing is billed.")
