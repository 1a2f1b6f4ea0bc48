"""What the queue's routes do: rows in, answers out. Each method is one transaction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import RANK, Request, State
from app.errors import QueueFull, UnknownRequest
from app.keys.limits import QueueRoom
from app.modes.base import AnyMode
from app.modes.common import TrainerRequest
from app.requests import lifecycle, repository
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


@dataclass(frozen=True)
class Submit:
    """A request to store, and on what condition."""

    new: repository.NewRequest
    max_queue_length: int | None = None


class RequestService:
    """``on_queued`` is called after a commit that made work."""

    def __init__(
        self, database: AsyncDatabase, public_url: str, on_queued: Callable[[], None]
    ) -> None:
        self._database = database
        self._public_url = public_url
        self._on_queued = on_queued

    async def submit(
        self, mode: AnyMode, owner: str, request: TrainerRequest, options: SubmitOptions
    ) -> Submitted:
        """Store the request; once this returns, nothing short of a lost disk loses it.

        Raises:
            QueueFull: more wait than the caller's limit.
            QueueLimitReached: as many of this owner wait as its key may have.
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
        position = await self._database.write_together(
            _submit_all, Submit(new, options.max_queue_length)
        )
        self._on_queued()
        log.info(
            "request.submitted",
            request_id=new.id,
            mode=mode.path,
            # Without its query, which may hold the receiver's secret.
            webhook=(options.webhook_url or "").partition("?")[0] or None,
        )
        return Submitted(
            request_id=new.id,
            gateway_request_id=new.id,
            queue_position=position,
            **urls(self._public_url, new),
        )

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


def _submit_all(session: Session, submits: Sequence[Submit]) -> list[int | Exception]:
    """The queue position of each, or why it was not taken."""
    room = QueueRoom(session, (submit.new.owner for submit in submits))
    waiting = repository.queued_by_priority(session)
    answers: list[int | Exception] = []
    taken: list[repository.NewRequest] = []
    for submit in submits:
        rank, limit = RANK[submit.new.priority], submit.max_queue_length
        if limit is not None and (total := sum(waiting.values())) > limit:
            answers.append(QueueFull(f"{total} requests wait already, more than {limit}."))
            continue
        if (no_room := room.take(submit.new.owner)) is not None:
            answers.append(no_room)
            continue
        # All of a better or the same priority came before.
        answers.append(sum(count for other, count in waiting.items() if other <= rank))
        waiting[rank] = waiting.get(rank, 0) + 1
        taken.append(submit.new)
    repository.add_all(session, taken)
    return answers


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
