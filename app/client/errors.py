"""How a command ends when it can't do what was asked.

ClientError
├── RequestFailed   1  the request ended without a result
├── Refused         2  the service, or this client, does not take it as it was asked
└── Unreachable     3  no answer, or one that says "not now"
"""

from collections.abc import Sequence
from typing import ClassVar

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class ClientError(Exception):
    """``lines`` are for the user; the first says what is wrong, each other one a detail."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)
        self.lines: Sequence[str] = lines

    def __str__(self) -> str:
        return "\n  ".join(self.lines)


class RequestFailed(ClientError):
    """The request is COMPLETED, with an error."""


class Refused(ClientError):
    """Asking again changes nothing; asking otherwise does. ``status`` is None where the client
    itself refuses."""

    exit_code = 2

    def __init__(self, *lines: str, status: int | None = None) -> None:
        super().__init__(*lines)
        self.status = status


class Unreachable(ClientError):
    """Asking again later helps."""

    exit_code = 3
