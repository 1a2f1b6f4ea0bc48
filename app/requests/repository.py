"""What is asked of the requests' tables, other than moving a request (`lifecycle.py`)."""

import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, and_, func, insert, or_, select
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.models import RANK, Event, LogLine, Priority, Purpose, Request, State

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


def add(session: Session, new: NewRequest) -> Request:
    """Insert ``new``, queued for its first stage with a wake-up due."""
    request_id = str(uuid.uuid4())
    deadline = None if new.start_timeout_s is None else db_now() + new.start_timeout_s
    row: Request = session.scalars(
        insert(Request).returning(Request),
        [
            {
                "id": request_id,
                "owner": new.owner,
                "endpoint": new.endpoint,
                "app": new.app,
                "mode": new.mode,
                "input": new.input,
                "priority": RANK[new.priority],
                "no_retry": new.no_retry,
                "webhook_url": new.webhook_url,
                "tags": dict(new.tags),
                "purpose": new.purpose,
                "idempotency_key": new.idempotency_key,
                "body_sha256": new.body_sha256,
                "storage_prefix": f"requests/{request_id}-{secrets.token_hex(PREFIX_RANDOM_BYTES)}",
            }
        ],
    ).one()
    if deadline is not None:
        row.start_deadline = deadline
        session.flush()
    return row


def get(session: Session, request_id: str, app: str, owner: str) -> Request | None:
    """``owner``'s request of that id; someone else's is as absent as one that never was."""
    return session.scalar(
        select(Request).where(Request.id == request_id, Request.app == app, Request.owner == owner)
    )


def position(session: Session, row: Request) -> int:
    """How many queued requests, of any stage, come before ``row``."""
    return _count(session, Request.state == State.QUEUED, _before(row))


def queue_length(session: Session) -> int:
    """Requests that wait for a worker."""
    return _count(session, Request.state == State.QUEUED)


def log_lines(session: Session, request_id: str) -> Sequence[LogLine]:
    """The newest `LOG_WINDOW` lines, oldest of them first."""
    newest = session.scalars(
        select(LogLine)
        .where(LogLine.request_id == request_id)
        .order_by(LogLine.id.desc())
        .limit(LOG_WINDOW)
    ).all()
    return newest[::-1]


def events(session: Session, request_id: str, after: int) -> Sequence[Event]:
    """The first `EVENTS_PAGE` events whose id is above ``after``."""
    return session.scalars(
        select(Event)
        .where(Event.request_id == request_id, Event.id > after)
        .order_by(Event.id)
        .limit(EVENTS_PAGE)
    ).all()


def ended_prefixes(session: Session, before_s: float) -> Sequence[str]:
    """Storage prefixes of requests that ended lately, but at least ``before_s`` seconds ago."""
    return session.scalars(
        select(Request.storage_prefix)
        .where(
            Request.state == State.COMPLETED,
            Request.finished_at < db_now() - before_s,
            Request.finished_at > db_now() - ENDED_LATELY_S,
        )
        .order_by(Request.finished_at)
    ).all()


def _before(row: Request) -> ColumnElement[bool]:
    return or_(
        Request.priority < row.priority,
        and_(Request.priority == row.priority, Request.number < row.number),
    )


def _count(session: Session, *where: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(Request).where(*where)) or 0
