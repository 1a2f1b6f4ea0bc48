"""Following a request until it is COMPLETED, through restarts of the service."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from app.client.errors import Unreachable
from app.client.service import Handle, Service

POLL_S: Final = 1.0
"""As often as workers write."""
LONGEST_PAUSE_S: Final = 15.0
PATIENCE_S: Final = 30 * 60.0
"""Without an answer: a machine's restart and a laptop's train ride are shorter."""


@dataclass(frozen=True)
class LogLine:
    timestamp: str
    """ISO 8601, UTC."""
    level: str
    message: str


@dataclass(frozen=True)
class Update:
    """What is so now, and what is new since the last one."""

    status: str
    position: int | None
    """How many come before it; only in the queue."""
    stage: str
    progress: Mapping[str, Any]
    """``stage``, ``step``, ``of``, ``loss``, ``eta_s``, ``done``, ``total``: what is known."""
    lines: Sequence[LogLine]
    previews: Sequence[Mapping[str, Any]]
    """Each with ``step``, ``index``, ``prompt`` and a ``file``."""
    error: str | None

    @property
    def completed(self) -> bool:
        return self.status == "COMPLETED"


class Display(Protocol):
    """Where it is shown."""

    def update(self, update: Update) -> None: ...

    def say(self, line: str) -> None: ...


def follow(service: Service, handle: Handle, display: Display, *, poll_s: float = POLL_S) -> Update:
    """Show every update; returns the last one.

    Raises:
        Unreachable: no answer for `PATIENCE_S`. The request goes on.
        Refused: such as a key that was revoked meanwhile.
    """
    answered_at, pause = time.monotonic(), poll_s
    updates = updates_of(service, handle)
    while True:
        try:
            update = next(updates)
        except Unreachable as error:
            if time.monotonic() - answered_at > PATIENCE_S:
                raise
            if pause == poll_s:
                display.say(f"{error.lines[0]}; trying again, the request goes on")
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            answered_at, pause = time.monotonic(), poll_s
            display.update(update)
            if update.completed:
                return update
        time.sleep(pause)


class updates_of(Iterator[Update]):
    """Updates without end, one for each `next`; after an `Unreachable` the next one goes on."""

    def __init__(self, service: Service, handle: Handle) -> None:
        self._service = service
        self._handle = handle
        self._shown: list[LogLine] = []
        self._after = 0

    def __next__(self) -> Update:
        # The status first: once it says COMPLETED, nothing follows the events that are read next.
        status = self._service.status(self._handle, logs=True, repeat=False)
        previews: list[Mapping[str, Any]] = []
        after = self._after
        while True:
            page = self._service.events(self._handle, after, repeat=False)
            if not page["events"]:
                break
            after = page["after"]
            previews += [e["data"] for e in page["events"] if e["kind"] == "preview"]
        window = [
            LogLine(line["timestamp"], line["level"], line["message"])
            for line in status["logs"] or ()
        ]
        new = what_follows(self._shown, window)
        # Only now: an update is given whole or not at all.
        self._shown, self._after = window, after
        return Update(
            status=status["status"],
            position=status.get("queue_position"),
            stage=page["stage"],
            progress=page["progress"] or {},
            lines=new,
            previews=previews,
            error=status.get("error"),
        )


def what_follows(before: Sequence[LogLine], now: Sequence[LogLine]) -> Sequence[LogLine]:
    """The lines of the window ``now`` that ``before`` did not have. A window holds the newest lines
    only; where they overlap is where the end of one is the beginning of the other."""
    for start in range(len(before) + 1):
        kept = len(before) - start
        if before[start:] == now[:kept]:
            return now[kept:]
    return now
