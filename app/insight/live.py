"""A request's changes as server-sent events: progress, events and log lines as they come.

Every event's id says how far it is, and browsers send it back when they connect again
(``Last-Event-ID``): a gateway's restart loses nothing and repeats nothing.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from typing import Final

from sqlalchemy.orm import Session
from starlette.responses import Response

from app.errors import REQUEST_ID
from app.insight import lines
from app.insight.schemas import LiveChange, LogLine
from app.requests import repository
from app.requests.files import signed
from app.requests.schemas import LiveEvent
from app.requests.service import Asked, RequestService
from app.requests.stream import EventStream, Permitted, changes
from app.requests.watch import Snapshot
from app.storage import Storage

RETRY: Final = b"retry: 2000\n\n"
"""Milliseconds after which a browser connects again."""


async def follow(
    service: RequestService,
    storage: Storage,
    asked: Asked,
    permitted: Permitted,
    after: int,
    log_after: int,
) -> Response:
    """The stream. Raises `UnknownRequest` before anything is sent."""
    first = await service.snapshot(asked)
    known = Known(service, storage, asked.request_id, after, log_after)
    events = _stream(changes(service, known, first, permitted))
    return EventStream(events, {REQUEST_ID: asked.request_id})


class Known:
    """How far one listener is."""

    def __init__(
        self, service: RequestService, storage: Storage, request_id: str, after: int, log_after: int
    ) -> None:
        self._service = service
        self._storage = storage
        self._request_id = request_id
        self._after = after
        self._log_after = log_after
        self._told: Snapshot | None = None

    async def news(self, now: Snapshot) -> AsyncGenerator[bytes, None]:
        while now != self._told or now.last_event > self._after or now.last_line > self._log_after:
            events, new_lines = await self._service.read(
                _new, self._request_id, self._after, self._log_after
            )
            # What was deleted meanwhile is not waited for.
            self._after = max(self._after, events[-1].id if events else now.last_event)
            self._log_after = max(self._log_after, new_lines[-1].id if new_lines else now.last_line)
            self._told = now
            change = LiveChange.model_validate(
                {
                    "status": now.status.status,
                    "stage": now.stage,
                    "progress": now.progress,
                    "queue_position": now.status.queue_position,
                    "error": now.status.error,
                    "events": events,
                    "lines": new_lines,
                    "after": self._after,
                    "log_after": self._log_after,
                }
            )
            if any("file" in event.data for event in events):
                body = await asyncio.to_thread(signed, self._storage, change.model_dump())
                change = LiveChange.model_validate(body)
            yield (
                f"id: {self._after}-{self._log_after}\ndata: {change.model_dump_json()}\n\n"
            ).encode()


def _new(
    session: Session, request_id: str, after: int, log_after: int
) -> tuple[list[LiveEvent], list[LogLine]]:
    events = [
        LiveEvent(id=event.id, ts=event.ts, kind=event.kind, data=event.data)
        for event in repository.events(session, request_id, after)
    ]
    found = repository.log_lines_after(session, request_id, log_after)
    return events, [lines.shown(line) for line in found]


async def _stream(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield RETRY
    async with contextlib.aclosing(events):
        async for event in events:
            yield event


def position(last_event_id: str | None, after: int, log_after: int) -> tuple[int, int]:
    """Where to go on: what the browser last saw, else what the URL says.

    >>> position("12-7", 3, 0)
    (12, 7)
    >>> position("nonsense", 3, 0)
    (3, 0)
    """
    first, _, second = (last_event_id or "").partition("-")
    if all(re.fullmatch(r"[0-9]{1,18}", part) for part in (first, second)):
        return int(first), int(second)
    return after, log_after
