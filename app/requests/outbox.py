"""Wake-ups: telling the broker that a queue has work, after the commit that made it.

The row itself is the outbox: ``woken_at`` is NULL while a wake-up is due. It is sent first and
marked second, so a crash in between sends it twice; a second one finds nothing to claim. One that
the broker lost is sent again after a while, and then after longer and longer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
from sqlalchemy import ColumnElement, bindparam, case, literal, select, update
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.engine import Database
from app.db.models import Request, Stage, State
from app.metrics.counts import BROKER_ERRORS
from preprocessing.failpoints import reach

QUEUES = {Stage.PREPARE: "cpu", Stage.TRAIN: "gpu"}
TASKS = {"cpu": "reelsmith.prepare", "gpu": "reelsmith.train"}
"""The task that serves each queue, by name: the gateway never imports the workers."""

REPEAT_AFTER_S = 30.0
"""The first repetition; every further one waits twice as long."""
REPEAT_AT_MOST_S = 600.0
REPEAT_HEAD = 8
"""Only the head of a queue is repeated. A wake-up names no request, so the ones behind follow."""
BATCH = 32
"""First wake-ups per pass: more than workers that could take them."""

IN_ORDER = (Request.priority, Request.number)
"""Normal before low, then the oldest."""

Send = Callable[[str], None]
"""Sends one wake-up to the queue of that name. Raises whatever the broker's client raises."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Due:
    """A wake-up to send; ``attempt`` and ``wakes`` tell it from later ones of the same request."""

    request_id: str
    queue: str
    attempt: int
    wakes: int


def due(session: Session) -> list[Due]:
    """Wake-ups to send now: the first `BATCH` first ones of each queue, and repetitions at its
    head."""
    found: list[Due] = []
    for stage in Stage:
        found += _first(session, stage)
        found += _overdue(session, stage)
    return found


def mark(session: Session, sent: list[Due]) -> None:
    """Remember that ``sent`` were sent. A request that moved on meanwhile stays due."""
    # Not through the ORM, which takes them one by one.
    session.connection().execute(
        _MARK,
        [{"of": wake.request_id, "at": wake.attempt, "after": wake.wakes} for wake in sent],
    )


def send_all(wakes: list[Due], send: Send) -> list[Due]:
    """Send until the broker refuses; returns those that went out."""
    sent: list[Due] = []
    for wake in wakes:
        try:
            reach("wake.before_send")
            send(wake.queue)
            reach("wake.after_send")
        except Exception as error:  # whichever broker: the rows keep it due, and it goes later
            BROKER_ERRORS.inc()
            log.warning("wake_up.not_sent", queue=wake.queue, error=repr(error))
            break
        sent.append(wake)
    return sent


def publish_pending(database: Database, send: Send) -> int:
    """Send what is due, for callers without an event loop. Returns how many went out."""
    with database.read() as session:
        wakes = due(session)
    sent = send_all(wakes, send) if wakes else []
    if sent:
        with database.write() as session:
            mark(session, sent)
    return len(sent)


def _first(session: Session, stage: Stage) -> Iterator[Due]:
    rows = session.execute(
        select(Request.id, Request.attempt, Request.wakes)
        .where(Request.state == State.QUEUED, Request.stage == stage, Request.woken_at.is_(None))
        .order_by(*IN_ORDER)
        .limit(BATCH)
    )
    for request_id, attempt, wakes in rows:
        yield Due(request_id, QUEUES[stage], attempt, wakes)


def _overdue(session: Session, stage: Stage) -> Iterator[Due]:
    overdue = Request.woken_at + _gap() < db_now()
    head = session.execute(
        select(Request.id, Request.attempt, Request.wakes, overdue)
        .where(Request.state == State.QUEUED, Request.stage == stage)
        .order_by(*IN_ORDER)
        .limit(REPEAT_HEAD)
    )
    for request_id, attempt, wakes, is_overdue in head:
        if is_overdue:
            yield Due(request_id, QUEUES[stage], attempt, wakes)


def _gap() -> ColumnElement[float]:
    """Seconds to wait after the n-th wake-up, doubling up to the limit."""
    steps = []
    n, gap = 1, REPEAT_AFTER_S
    while gap < REPEAT_AT_MOST_S:
        steps.append((Request.wakes <= n, literal(gap)))
        n, gap = n + 1, gap * 2
    return case(*steps, else_=literal(REPEAT_AT_MOST_S))


_MARK = (
    update(Request.__table__)  # type: ignore[arg-type]  # a declared class's table
    .where(
        Request.id == bindparam("of"),
        Request.state == State.QUEUED,
        Request.attempt == bindparam("at"),
        Request.wakes == bindparam("after"),
    )
    .values(woken_at=db_now(), wakes=Request.wakes + 1)
)
