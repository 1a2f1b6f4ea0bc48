"""Wake-ups: telling the broker that a queue has work, after the commit that made it.

The row itself is the outbox: ``woken_at`` is NULL while a wake-up is due. It is sent first and
marked second, so a crash in between sends it twice; a second one finds nothing to claim. One that
the broker lost is sent again after a while, and then after longer and longer.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog
from sqlalchemy import ColumnElement, case, literal, select, update
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
    """Wake-ups to send now: every first one, and repetitions at the head of each queue."""
    found = list(_queued(session, Request.woken_at.is_(None), limit=BATCH))
    for stage in Stage:
        head = (
            select(Request.id)
            .where(Request.state == State.QUEUED, Request.stage == stage)
            .order_by(*IN_ORDER)
            .limit(REPEAT_HEAD)
        )
        overdue = Request.woken_at + _gap() < db_now()
        found += _queued(session, Request.id.in_(head), overdue, limit=REPEAT_HEAD)
    return found


def mark(session: Session, sent: list[Due]) -> None:
    """Remember that ``sent`` were sent. A request that moved on meanwhile stays due."""
    for wake in sent:
        session.execute(
            update(Request)
            .where(
                Request.id == wake.request_id,
                Request.state == State.QUEUED,
                Request.attempt == wake.attempt,
                Request.wakes == wake.wakes,
            )
            .values(woken_at=db_now(), wakes=wake.wakes + 1)
            .execution_options(synchronize_session=False)
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


def _queued(session: Session, *where: ColumnElement[bool], limit: int) -> Iterator[Due]:
    rows = session.execute(
        select(Request.id, Request.stage, Request.attempt, Request.wakes)
        .where(Request.state == State.QUEUED, *where)
        .order_by(*IN_ORDER)
        .limit(limit)
    )
    for request_id, stage, attempt, wakes in rows:
        yield Due(request_id, QUEUES[Stage(stage)], attempt, wakes)


def _gap() -> ColumnElement[float]:
    """Seconds to wait after the n-th wake-up, doubling up to the limit."""
    steps = []
    n, gap = 1, REPEAT_AFTER_S
    while gap < REPEAT_AT_MOST_S:
        steps.append((Request.wakes <= n, literal(gap)))
        n, gap = n + 1, gap * 2
    return case(*steps, else_=literal(REPEAT_AT_MOST_S))
