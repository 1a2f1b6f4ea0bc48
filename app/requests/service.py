"""What the queue's routes do: rows in, answers out. Each method is one transaction."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

import structlog
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import RANK, LogLine, Purpose, Request, Stage, State
from app.errors import ExpiredRequest, InvalidInput, QueueFull, UnknownRequest
from app.keys.limits import QueueRoom
from app.metrics.counts import SUBMITS
from app.modes.base import AnyMode
from app.modes.common import Input
from app.requests import lifecycle, repeats, repository
from app.requests.answers import metrics_of, stage_of, urls
from app.requests.lengths import QueueLengths
from app.requests.options import SubmitOptions
from app.requests.schemas import (
    WIRE_STATUS,
    Events,
    LiveEvent,
    LogEntry,
    RequestStatus,
    Submitted,
)
from app.requests.watch import Snapshot, Watcher
from preprocessing.failpoints import reach

log = structlog.get_logger()

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Asked:
    """Which request is meant, and who asks."""

    app: str
    request_id: str
    owner: str
    retention_s: float = 0.0
    """Said of a request that has expired."""

    def find(self, session: Session) -> Request:
        """Raises `UnknownRequest`, for another owner's request too; `ExpiredRequest`."""
        row = repository.get(session, self.request_id, self.app, self.owner)
        if row is None:
            raise UnknownRequest
        if row.expired_at is not None:
            raise ExpiredRequest(row.expired_at, self.retention_s)
        return row


@dataclass(frozen=True)
class Submit:
    """A request to store, and on what condition."""

    new: repository.NewRequest
    max_queue_length: int | None = None
    dedupe_window_s: float = 0.0

    @property
    def may_repeat(self) -> bool:
        return self.new.idempotency_key is not None or self.dedupe_window_s > 0


@dataclass(frozen=True)
class Taken:
    """The request that a submit made, or found."""

    id: str
    app: str
    position: int
    repeated: bool = False


class RequestService:
    """``on_queued`` is called after a commit that made work; ``check_webhook`` raises for a URL
    that nothing will be sent to, ``check_sources`` for one that nothing will be read from."""

    def __init__(
        self,
        database: AsyncDatabase,
        public_url: str,
        on_queued: Callable[[], None],
        check_webhook: Callable[[str], None],
        check_sources: Callable[[AnyMode, Input], None],
        dedupe_window_s: float = 0.0,
        retention_s: float = 0.0,
    ) -> None:
        self._database = database
        self._public_url = public_url
        self._on_queued = on_queued
        self._check_webhook = check_webhook
        self._check_sources = check_sources
        self.watcher = Watcher(self.snapshots)
        self._submit_all = partial(_submit_all, QueueLengths())
        self._dedupe_window_s = dedupe_window_s
        self.retention_s = retention_s

    async def submit(
        self,
        mode: AnyMode,
        owner: str,
        request: Input,
        options: SubmitOptions,
        purpose: Purpose = Purpose.TRAIN,
    ) -> tuple[Submitted, bool]:
        """Store the request; once this returns, nothing short of a lost disk loses it.

        Returns:
            Its answer, and whether it repeats an earlier submit (`repeats.py`) and stored nothing.

        Raises:
            QueueFull: more wait than the caller's limit.
            QueueLimitReached: as many of this owner wait as its key may have.
            InvalidInput: its idempotency key was used for another request, or a URL leads where
                nothing is sent to or read from.
        """
        self._check_sources(mode, request)
        if options.webhook_url is not None:
            self._check_webhook(options.webhook_url)
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
        reach("submit.before_commit")
        taken = await self._database.write_together(
            self._submit_all, Submit(new, options.max_queue_length, self._dedupe_window_s)
        )
        reach("submit.after_commit")
        SUBMITS.labels(mode.path, str(taken.repeated).lower()).inc()
        if not taken.repeated:
            self._on_queued()
        log.info(
            "request.repeated" if taken.repeated else "request.submitted",
            request_id=taken.id,
            mode=mode.path,
            # Without its query, which may hold the receiver's secret.
            webhook=(options.webhook_url or "").partition("?")[0] or None,
        )
        answer = Submitted(
            request_id=taken.id,
            gateway_request_id=taken.id,
            queue_position=taken.position,
            **urls(self._public_url, taken),
        )
        return answer, taken.repeated

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
        return {
            row.id: self._snapshot_of(row, position, line, event)
            for row, position, line, event in found
        }

    async def new_lines(self, request_id: str, after: int) -> list[tuple[int, LogEntry]]:
        """The first log lines above the id ``after``, with their ids."""
        return await self._database.read(_new_lines, request_id, after)

    async def get(self, asked: Asked) -> Request:
        """The row, to read. Raises `UnknownRequest`."""
        return await self._database.read(asked.find)

    async def read(
        self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """What ``function(session, ...)`` finds, in a transaction that only reads."""
        return await self._database.read(function, *args, **kwargs)

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
            request_id=row.id,
            **urls(self._public_url, row),
            status=WIRE_STATUS[row.state],
            queue_position=position,
            logs=lines,
            metrics=metrics_of(row),
            error=row.error,
            error_type=row.error_type,
        )

    def _snapshot_of(
        self, row: Request, position: int | None, last_line: int, last_event: int
    ) -> Snapshot:
        status = self._status_of(row, position, None)
        stage = stage_of(row.mode, row.stage)
        return Snapshot(status, last_line, last_event, stage, row.progress)


def _submit_all(
    lengths: QueueLengths, session: Session, submits: Sequence[Submit]
) -> list[Taken | Exception]:
    """What became of each, in their order."""
    owners = {submit.new.owner for submit in submits}
    room = QueueRoom(session, owners)
    limited = any(submit.max_queue_length is not None for submit in submits)
    waiting = lengths.waiting(session, owners, exact=limited)
    answers: list[Taken | Exception] = []
    new: list[repository.NewRequest] = []
    for submit in submits:
        try:
            earlier = submit.may_repeat and _earlier(session, submit, new)
        except InvalidInput as error:
            answers.append(error)
            continue
        if earlier:
            answers.append(earlier)
            continue
        rank, limit = RANK[submit.new.priority], submit.max_queue_length
        if limit is not None and waiting.total > limit:
            answers.append(QueueFull(f"{waiting.total} requests wait already, more than {limit}."))
            continue
        if (no_room := room.take(submit.new.owner)) is not None:
            answers.append(no_room)
            continue
        position = waiting.position(submit.new.owner, rank, Stage.PREPARE)
        answers.append(Taken(submit.new.id, submit.new.app, position))
        waiting.add(submit.new.owner, rank)
        new.append(submit.new)
    repository.add_all(session, new)
    return answers


def _earlier(
    session: Session, submit: Submit, unwritten: list[repository.NewRequest]
) -> Taken | None:
    """The request that ``submit`` repeats. It may be one of those that are not written yet."""
    repository.add_all(session, unwritten)
    unwritten.clear()
    assert submit.new.body_sha256 is not None
    row = repeats.find(
        session,
        submit.new.owner,
        key=submit.new.idempotency_key,
        body_sha256=submit.new.body_sha256,
        window_s=submit.dedupe_window_s,
    )
    if row is None:
        return None
    position = repository.position(session, row) if row.state == State.QUEUED else 0
    return Taken(row.id, row.app, position, repeated=True)


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


def _watched(session: Session, asked: Asked) -> tuple[Request, int | None, int, int]:
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
            "stage": stage_of(row.mode, row.stage),
            "progress": row.progress,
            "events": events,
            "after": events[-1].id if events else after,
        }
    )


def _cancel(session: Session, asked: Asked) -> str:
    return lifecycle.request_cancel(session, asked.find(session).id, asked.owner)
