"""What is asked of the requests' tables, other than moving a request (`lifecycle.py`)."""

import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sqlalchemy import (
    Float,
    Table,
    bindparam,
    func,
    insert,
    select,
    tuple_,
)
from sqlalchemy.orm import Session, defer

from app.clock import db_now
from app.db.models import RANK, Event, LogLine, Priority, Purpose, Request, State
from app.requests import turns

LOG_WINDOW = 2_000
"""Newest lines that a status carries: clients poll ten times a second."""
EVENTS_PAGE = 1_000
"""Events per page of the events route."""
PREFIX_RANDOM_BYTES = 16
"""128 bits: keys are part of URLs, and must not be guessed."""

ENDED_LATELY_S = 2 * 24 * 3600.0
"""Longer than any gateway is away; what ended before that was cleaned up then."""


@dataclass(frozen=True)
class NewRequest:
    """A request as submitted and validated."""

    owner: str
    endpoint: str
    app: str
    mode: str
    input: dict[str, Any]
    priority: Priority = Priority.NORMAL
    start_timeout_s: float | None = None
    no_retry: bool = False
    webhook_url: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    purpose: Purpose = Purpose.TRAIN
    idempotency_key: str | None = None
    body_sha256: str | None = None
    id: str = field(default_factory=lambda: str(uuid.uuid4()))


_INSERT = insert(Request.__table__).values(  # type: ignore[arg-type]  # a declared class's table
    created_at=db_now(),
    # NULL stays NULL.
    start_deadline=db_now() + bindparam("start_timeout_s", type_=Float()),
)


def add_all(session: Session, new: Iterable[NewRequest]) -> None:
    """Insert ``new``, each queued for its first stage with a wake-up due, in that order."""
    rows = [
        {
            "id": one.id,
            "owner": one.owner,
            "endpoint": one.endpoint,
            "app": one.app,
            "mode": one.mode,
            "input": one.input,
            "priority": RANK[one.priority],
            "start_timeout_s": one.start_timeout_s,
            "no_retry": one.no_retry,
            "webhook_url": one.webhook_url,
            "tags": dict(one.tags),
            "purpose": one.purpose,
            "idempotency_key": one.idempotency_key,
            "body_sha256": one.body_sha256,
            "storage_prefix": f"requests/{one.id}-{secrets.token_hex(PREFIX_RANDOM_BYTES)}",
        }
        for one in new
    ]
    if rows:
        # Not through the ORM: it takes ten times as long, and nothing of it is needed.
        session.connection().execute(_INSERT, rows)


def add(session: Session, new: NewRequest) -> Request:
    """`add_all` of one; returns its row."""
    add_all(session, [new])
    return session.scalars(select(Request).where(Request.id == new.id)).one()


def get(session: Session, request_id: str, app: str, owner: str) -> Request | None:
    """``owner``'s request of that id; someone else's is as absent as one that never was."""
    return session.scalar(
        select(Request).where(Request.id == request_id, Request.app == app, Request.owner == owner)
    )


def position(session: Session, row: Request) -> int:
    """How many queued requests, of any stage, come before ``row``."""
    return _positions(session, [row.id])[row.id]


def log_lines(session: Session, request_id: str) -> Sequence[LogLine]:
    """The newest `LOG_WINDOW` lines, oldest of them first."""
    newest = session.scalars(
        select(LogLine)
        .where(LogLine.request_id == request_id)
        .order_by(LogLine.id.desc())
        .limit(LOG_WINDOW)
    ).all()
    return newest[::-1]


def log_lines_after(session: Session, request_id: str, after: int) -> Sequence[LogLine]:
    """The first `LOG_WINDOW` lines whose id is above ``after``, oldest first."""
    return session.scalars(
        select(LogLine)
        .where(LogLine.request_id == request_id, LogLine.id > after)
        .order_by(LogLine.id)
        .limit(LOG_WINDOW)
    ).all()


def watched(session: Session, ids: Sequence[str]) -> list[tuple[Request, int | None, int, int]]:
    """(row, its position while it is queued, ids of its newest log line and event or 0) of each.

    The rows come without their large columns.
    """
    newest_line = (
        select(func.max(LogLine.id)).where(LogLine.request_id == Request.id).scalar_subquery()
    )
    newest_event = (
        select(func.max(Event.id)).where(Event.request_id == Request.id).scalar_subquery()
    )
    large = (Request.input, Request.prepared, Request.result_body, Request.tags)
    found = session.execute(
        select(Request, newest_line, newest_event)
        .where(Request.id.in_(ids))
        .options(*(defer(column) for column in large))
    ).all()
    positions = _positions(session, [row.id for row, *_ in found if row.state == State.QUEUED])
    return [(row, positions.get(row.id), line or 0, event or 0) for row, line, event in found]


def events(session: Session, request_id: str, after: int) -> Sequence[Event]:
    """The first `EVENTS_PAGE` events whose id is above ``after``."""
    return session.scalars(
        select(Event)
        .where(Event.request_id == request_id, Event.id > after)
        .order_by(Event.id)
        .limit(EVENTS_PAGE)
    ).all()


class Ended(NamedTuple):
    """A request that has ended, for who removes the rests of it."""

    finished_at: float
    id: str
    storage_prefix: str
    result_body: dict[str, Any] | None


def ended_lately(
    session: Session, before_s: float, after: tuple[float, str] = (0.0, ""), limit: int = 100
) -> list[Ended]:
    """The first that ended lately, but at least ``before_s`` seconds ago, and after ``after``: the
    time and the id of another one."""
    found = session.execute(
        select(Request.finished_at, Request.id, Request.storage_prefix, Request.result_body)
        .where(
            Request.finished_at.is_not(None),
            Request.expired_at.is_(None),
            Request.finished_at < db_now() - before_s,
            Request.finished_at > db_now() - ENDED_LATELY_S,
            tuple_(Request.finished_at, Request.id) > after,
        )
        .order_by(Request.finished_at, Request.id)
        .limit(limit)
    )
    return [Ended(*row) for row in found]


def _positions(session: Session, ids: Sequence[str]) -> dict[str, int]:
    """`position` of many queued requests, in one query."""
    if not ids:
        return {}
    requests: Table = Request.__table__  # type: ignore[assignment]  # a declared class's table
    columns = (requests.c.owner, requests.c.priority, requests.c.stage, turns.own_ahead(requests))
    found = session.execute(select(requests.c.id, *columns).where(requests.c.id.in_(ids))).all()
    waiting = turns.waiting(session)
    return {id: waiting.position(*rest) for id, *rest in found}
