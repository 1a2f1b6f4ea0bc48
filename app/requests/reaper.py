"""What nobody else will mend: leases that ran out, deadlines that passed, cancels nobody took up.

Any number of gateways may run it at once: rows are locked, and one that another reaper holds is
left to it.
"""

from dataclasses import dataclass, field

from sqlalchemy import ColumnElement, not_, select, update
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.models import Attempt, Outcome, Request, State
from app.requests.answers import stage_of
from app.requests.lifecycle import (
    ATTEMPTS_LIMIT,
    Log,
    finish,
    finish_cancelled,
    log,
    may_start,
    requeue,
)

BATCH = 100
"""Rows per pass and kind: a pass stays short, and the next one is seconds away."""

WORK = {"prepare": "preparing", "train": "training", "generate": "generating"}
"""Of each stage, as `answers.stage_of` calls it."""


@dataclass
class Reaped:
    """Ids of what a pass changed."""

    requeued: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    timed_out: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.requeued or self.dead or self.cancelled or self.timed_out)


def reap(session: Session, attempts_limit: int = ATTEMPTS_LIMIT) -> Reaped:
    """One pass, in the caller's transaction. Wake-ups follow by `outbox.publish_pending`."""
    reaped = Reaped()
    for row in _locked(
        session, Request.state == State.RUNNING, Request.lease_expires_at < db_now()
    ):
        _lose(session, row, attempts_limit, reaped)
    for row in _locked(
        session, Request.state == State.QUEUED, Request.cancel_requested_at.is_not(None)
    ):
        finish_cancelled(row)
        reaped.cancelled.append(row.id)
    for row in _locked(
        session, Request.state == State.QUEUED, Request.attempts_used >= attempts_limit
    ):
        # Only after the limit was lowered: `claim` passes it over, so it would wait for ever.
        _give_up(session, row, attempts_limit, reaped)
    for row in _locked(session, Request.state == State.QUEUED, not_(may_start())):
        _time_out(session, row)
        reaped.timed_out.append(row.id)
    return reaped


def _lose(session: Session, row: Request, attempts_limit: int, reaped: Reaped) -> None:
    """``row``'s worker went silent: queue it again, or end it when it has cost enough workers."""
    session.execute(
        update(Attempt)
        .where(Attempt.token == row.lease_token)
        .values(outcome=Outcome.LOST, ended_at=db_now(), detail="the lease ran out")
        .execution_options(synchronize_session=False)
    )
    if row.cancel_requested_at is not None:
        finish_cancelled(row)
        reaped.cancelled.append(row.id)
    elif row.no_retry or row.attempts_used >= attempts_limit:
        _give_up(session, row, attempts_limit, reaped)
    else:
        log(
            session,
            row.id,
            Log(
                f"The worker was lost (attempt {row.attempts_used} of {attempts_limit}). "
                "Another one goes on, from the newest checkpoint where there is one.",
                "WARN",
            ),
        )
        requeue(row)
        reaped.requeued.append(row.id)


def _give_up(session: Session, row: Request, attempts_limit: int, reaped: Reaped) -> None:
    """``row`` has cost enough workers."""
    text = (
        f"The worker was lost while {WORK[stage_of(row.mode, row.stage)]}, {row.attempts_used} of "
        f"{1 if row.no_retry else attempts_limit} attempts: the machine went away, or the "
        "process was killed for the memory it used. Nothing is billed. If other requests "
        "succeed, try a lower resolution, fewer frames or smaller files."
    )
    log(session, row.id, Log(text, "ERROR"))
    finish(
        row,
        status=500,
        body={"detail": text, "error_type": "runner_server_error"},
        error=text,
        error_type="runner_server_error",
    )
    reaped.dead.append(row.id)


def _time_out(session: Session, row: Request) -> None:
    text = "The request did not start within its start timeout."
    log(session, row.id, Log(text, "ERROR"))
    finish(
        row,
        status=504,
        body={"detail": text, "error_type": "request_timeout"},
        error=text,
        error_type="request_timeout",
    )


def _locked(session: Session, *where: ColumnElement[bool]) -> list[Request]:
    return list(
        session.scalars(
            select(Request).where(*where).limit(BATCH).with_for_update(skip_locked=True)
        )
    )
