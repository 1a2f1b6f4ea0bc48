"""What the queue's routes do: rows in, answers out. Each method is one transaction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import LogLine, Request, State
from app.errors import QueueFull, UnknownRequest
from app.modes.base import AnyMode
from app.modes.common import TrainerRequest
from app.requests import lifecycle, repository
from app.requests.options import SubmitOptions
from app.requests.schemas import Events, LiveEvent, LogEntry, RequestStatus, Status, Submitted
from app.requests.watch import Snapshot, Watcher

log = structlog.get_logger()

WIRE_STATUS: dict[str, Status] = {
    State.QUEUED: "IN_QUEUE",
    State.RUNNING: "IN_PROGRESS",
    State.COMPLETED: "COMPLETED",
}


@dataclass(frozen=True)
class Asked:
    """Which request is meant, and who asks."""

    app: str
    request_id: str
    owner: str

    def find(self, session: Session) -> Request:
        """Raises `UnknownRequest`, for another owner's request too."""
        row = repository.get(session, self.request_id, self.app, self.owner)
        if row is None:
            raise UnknownRequest
        return row


class RequestService:
    """``on_queued`` is called after a commit that made work."""

    def __init__(
        self, database: AsyncDatabase, public_url: str, on_queued: Callable[[], None]
    ) -> None:
        self._database = database
        self._public_url = public_url
        self._on_queued = on_queued
        self.watcher = Watcher(self.snapshots)

    async def submit(
        self, mode: AnyMode, owner: str, request: TrainerRequest, options: SubmitOptions
    ) -> Submitted:
        """Store the request; once this returns, nothing short of a lost disk loses it.

        Raises:
            QueueFull: more wait than the caller's limit.
        """
        new = repository.NewRequest(
            owner=owner,
            endpoint=mode.id,
            app=mode.app,
            mode=mode.path,
            input=request.model_dump(mode="json"),
            priority=options.priority,
            start_timeout_s=options.start_timeout_s,
            no_retry=options.no_retry,
            webhook_url=options.webhook_url,
            tags=options.tags,
        )
        row, position = await self._database.write(_submit, new, options.max_queue_length)
        self._on_queued()
        log.info(
            "request.submitted",
            request_id=row.id,
            mode=mode.path,
            # Without its query, which may hold the receiver's secret.
            webhook=(options.webhook_url or "").partition("?")[0] or None,
        )
        return Submitted(**self._reference(row), queue_position=position, gateway_request_id=row.id)

    async def status(self, asked: Asked, logs: bool) -> RequestStatus:
        """Raises `UnknownRequest`."""
        row, position, lines = await self._database.read(_status, asked, logs)
        return self._status_of(row, position, lines)

    async def snapshot(self, asked: Asked) -> Snapshot:
        """The request as its watchers see it. Raises `UnknownRequest`."""
        return self._snapshot_of(*await self._database.read(_watched, asked))

    async def snapshots(self, ids: Sequence[str]) -> dict[str, Snapshot]:
        """The same of all that exist, whoever owns them."""
        found = await self._database.read(repository.watched, ids)
        return {row.id: self._snapshot_of(row, position, line) for row, position, line in found}

    async def new_lines(self, request_id: str, after: int) -> list[tuple[int, LogEntry]]:
        """The first log lines above the id ``after``, with their ids."""
        return await self._database.read(_new_lines, request_id, after)

    async def get(self, asked: Asked) -> Request:
        """The row, to read. Raises `UnknownRequest`."""
        return await self._database.read(asked.find)

    async def events(self, asked: Asked, after: int) -> Events:
        """Raises `UnknownRequest`."""
        return await self._database.read(_events, asked, after)

    async def cancel(self, asked: Asked) -> str:
        """A `lifecycle.CancelAnswer`."""
        return await self._database.write(_cancel, asked)

    def _status_of(
        self, row: Request, position: int | None, lines: list[LogEntry] | None
    ) -> RequestStatus:
        return RequestStatus(
            **self._reference(row),
            status=WIRE_STATUS[row.state],
            queue_position=position,
            logs=lines,
            metrics=_metrics(row),
            error=row.error,
            error_type=row.error_type,
        )

    def _snapshot_of(self, row: Request, position: int | None, last_line: int) -> Snapshot:
        return Snapshot(self._status_of(row, position, None), last_line)

    def _reference(self, row: Request) -> dict[str, Any]:
        base = f"{self._public_url}/{row.app}/requests/{row.id}"
        return {
            "request_id": row.id,
            "response_url": base,
            "status_url": f"{base}/status",
            "cancel_url": f"{base}/cancel",
        }


def _submit(
    session: Session, new: repository.NewRequest, max_queue_length: int | None
) -> tuple[Request, int]:
    if max_queue_length is not None:
        waiting = repository.queue_length(session)
        if waiting > max_queue_length:
            raise QueueFull(f"{waiting} requests wait already, more than {max_queue_length}.")
    row = repository.add(session, new)
    return row, repository.position(session, row)


def _status(
    session: Session, asked: Asked, logs: bool
) -> tuple[Request, int | None, list[LogEntry] | None]:
    row = asked.find(session)
    position = repository.position(session, row) if row.state == State.QUEUED else None
    if not logs:
        return row, position, None
    return row, position, [_entry(line) for line in repository.log_lines(session, row.id)]


def _entry(line: LogLine) -> LogEntry:
    return LogEntry(message=line.message, timestamp=iso8601(line.ts), level=line.level)


def _watched(session: Session, asked: Asked) -> tuple[Request, int | None, int]:
    (found,) = repository.watched(session, [asked.find(session).id])
    return found


def _new_lines(session: Session, request_id: str, after: int) -> list[tuple[int, LogEntry]]:
    lines = repository.log_lines_after(session, request_id, after)
    return [(line.id, _entry(line)) for line in lines]


def _events(session: Session, asked: Asked, after: int) -> Events:
    row = asked.find(session)
    events = [
        LiveEvent(id=event.id, ts=event.ts, kind=event.kind, data=event.data)
        for event in repository.events(session, row.id, after)
    ]
    return Events.model_validate(
        {
            "status": WIRE_STATUS[row.state],
            "stage": row.stage,
            "progress": row.progress,
            "events": events,
            "after": events[-1].id if events else after,
        }
    )


def _cancel(session: Session, asked: Asked) -> str:
    return lifecycle.request_cancel(session, asked.find(session).id, asked.owner)


def _metrics(row: Request) -> dict[str, float]:
    """fal's ``inference_time``: what the work took, or for a failure how long it was tried."""
    if row.state != State.COMPLETED or row.finished_at is None:
        return {}
    if row.inference_time is not None:
        return {"inference_time": row.inference_time}
    return {"inference_time": max(0.0, row.finished_at - (row.started_at or row.finished_at))}
