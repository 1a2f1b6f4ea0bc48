"""What the queue's routes do: rows in, answers out. Each method is one transaction."""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import Purpose, Request, State
from app.errors import QueueFull, UnknownRequest
from app.modes.base import AnyMode
from app.modes.common import TrainerRequest
from app.requests import lifecycle, repeats, repository
from app.requests.answers import metrics_of, urls
from app.requests.options import SubmitOptions
from app.requests.schemas import (
    WIRE_STATUS,
    Events,
    LiveEvent,
    LogEntry,
    RequestStatus,
    Submitted,
)

log = structlog.get_logger()


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
        self,
        database: AsyncDatabase,
        public_url: str,
        on_queued: Callable[[], None],
        dedupe_window_s: float = 0.0,
    ) -> None:
        self._database = database
        self._public_url = public_url
        self._on_queued = on_queued
        self._dedupe_window_s = dedupe_window_s

    async def submit(
        self,
        mode: AnyMode,
        owner: str,
        request: TrainerRequest,
        options: SubmitOptions,
        purpose: Purpose = Purpose.TRAIN,
    ) -> tuple[Submitted, bool]:
        """Store the request; once this returns, nothing short of a lost disk loses it.

        Returns:
            Its answer, and whether it repeats an earlier submit (`repeats.py`) and stored nothing.

        Raises:
            QueueFull: more wait than the caller's limit.
            InvalidInput: its idempotency key was used for another request.
        """
        input = request.model_dump(mode="json")
        new = repository.NewRequest(
            owner=owner,
            endpoint=mode.id,
            app=mode.app,
            mode=mode.path,
            input=input,
            priority=options.priority,
            start_timeout_s=options.start_timeout_s,
            no_retry=options.no_retry,
            webhook_url=options.webhook_url,
            tags=options.tags,
            idempotency_key=options.idempotency_key,
            body_sha256=repeats.sha256_of(mode.id, purpose, input),
            purpose=purpose,
        )
        row, position, repeated = await self._database.write(
            _submit, new, options.max_queue_length, self._dedupe_window_s
        )
        if not repeated:
            self._on_queued()
        log.info(
            "request.repeated" if repeated else "request.submitted",
            request_id=row.id,
            mode=mode.path,
            # Without its query, which may hold the receiver's secret.
            webhook=(options.webhook_url or "").partition("?")[0] or None,
        )
        answer = Submitted(
            request_id=row.id,
            gateway_request_id=row.id,
            queue_position=position,
            **urls(self._public_url, row),
        )
        return answer, repeated

    async def status(self, asked: Asked, logs: bool) -> RequestStatus:
        """Raises `UnknownRequest`."""
        row, position, lines = await self._database.read(_status, asked, logs)
        return RequestStatus(
            request_id=row.id,
            **urls(self._public_url, row),
            status=WIRE_STATUS[row.state],
            queue_position=position,
            logs=lines,
            metrics=metrics_of(row),
            error=row.error,
            error_type=row.error_type,
        )

    async def get(self, asked: Asked) -> Request:
        """The row, to read. Raises `UnknownRequest`."""
        return await self._database.read(asked.find)

    async def events(self, asked: Asked, after: int) -> Events:
        """Raises `UnknownRequest`."""
        return await self._database.read(_events, asked, after)

    async def cancel(self, asked: Asked) -> str:
        """A `lifecycle.CancelAnswer`."""
        return await self._database.write(_cancel, asked)


def _submit(
    session: Session,
    new: repository.NewRequest,
    max_queue_length: int | None,
    dedupe_window_s: float,
) -> tuple[Request, int, bool]:
    assert new.body_sha256 is not None
    earlier = repeats.find(
        session,
        new.owner,
        key=new.idempotency_key,
        body_sha256=new.body_sha256,
        window_s=dedupe_window_s,
    )
    if earlier is not None:
        queued = earlier.state == State.QUEUED
        return earlier, repository.position(session, earlier) if queued else 0, True
    if max_queue_length is not None:
        waiting = repository.queue_length(session)
        if waiting > max_queue_length:
            raise QueueFull(f"{waiting} requests wait already, more than {max_queue_length}.")
    row = repository.add(session, new)
    return row, repository.position(session, row), False


def _status(
    session: Session, asked: Asked, logs: bool
) -> tuple[Request, int | None, list[LogEntry] | None]:
    row = asked.find(session)
    position = repository.position(session, row) if row.state == State.QUEUED else None
    if not logs:
        return row, position, None
    lines = [
        LogEntry(message=line.message, timestamp=iso8601(line.ts), level=line.level)
        for line in repository.log_lines(session, row.id)
    ]
    return row, position, lines


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
