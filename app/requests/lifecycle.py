"""Who may work on a request, and how it moves: the only code that changes its state.

Every function takes a sync `Session` and is one part of the caller's transaction (`db.write()`);
none commits. A worker's writes carry its lease token in their WHERE: when no row matches, the
request is someone else's by now, and `LeaseLost` is raised with nothing written.

    queued ──claim──> running ──advance──> queued (stage train; a check has none)
      ^                 │ ├──complete / fail / cancelled──> completed
      └─release, fail (retryable), reap (lease expired)──┘
"""

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, insert, or_, select, update
from sqlalchemy.orm import Session, object_session

from app.clock import db_now
from app.db.models import Attempt, Event, LogLine, Outcome, Purpose, Request, Stage, State
from app.errors import NotTraining, UnknownRequest
from app.keys import limits
from app.requests import turns
from preprocessing.failpoints import reach
from trainer.spec import Wish

LEASE_S = 40.0
ATTEMPTS_LIMIT = 3
"""Attempts that a request may lose in one stage; the third loss is the end (poison datasets)."""

MAX_LOG_CHARACTERS = 4_000
"""Of one line: a traceback fits, an archive's file list does not."""

_COLUMN = {Wish.SAVE: "save_wanted_at", Wish.SAMPLE: "sample_wanted_at"}
_ASKED = {
    Wish.SAVE: "A checkpoint was asked for; it is saved after the current step.",
    Wish.SAMPLE: "Previews were asked for; they are made after the current step.",
}

CLIENT_CANCELLED = 499
CANCELLED_TEXT = "Request cancelled by the client."


class LeaseLost(Exception):
    """This attempt no longer owns its request: stop, and write nothing more."""

    def __init__(self, claim: "Claim") -> None:
        super().__init__(f"attempt {claim.attempt} of request {claim.request_id} lost its lease")


@dataclass(frozen=True)
class Log:
    """A line for the user. ``ts`` (epoch seconds) defaults to the database's now."""

    message: str
    level: str = "INFO"
    ts: float | None = None


@dataclass(frozen=True)
class Happened:
    """An event for live progress; ``data`` is the event's line without its kind and time."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)
    ts: float | None = None


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a request, and everything it needs to do the work."""

    request_id: str
    token: str
    stage: Stage
    attempt: int
    """Unique within the request and never reused: names the folders of this attempt."""
    attempts_used: int
    """This attempt included; the budget is ``attempts_limit``."""
    attempts_limit: int
    worker: str
    owner: str
    endpoint: str
    mode: str
    input: dict[str, Any]
    storage_prefix: str
    prepared: dict[str, Any] | None
    no_retry: bool
    cancel_requested: bool
    purpose: Purpose = Purpose.TRAIN
    waited_s: float | None = None
    """From the submit to the first attempt; None for every other one."""


@dataclass(frozen=True)
class RenewResult:
    """What a worker learns whenever it writes."""

    cancel_requested: bool
    wishes: Mapping[Wish, float] = field(default_factory=dict)
    """Those that wait, with the time they were made at, which tells one from the next."""

    @classmethod
    def of(cls, row: Request) -> "RenewResult":
        return cls(row.cancel_requested_at is not None, wishes_of(row))


def claim(
    session: Session,
    stage: Stage,
    worker: str,
    lease_s: float = LEASE_S,
    attempts_limit: int = ATTEMPTS_LIMIT,
) -> Claim | None:
    """Take the next request of ``stage``: normal before low, then owners in turn, each with its
    oldest (`turns`). None: no work.

    Passed over are requests past their start deadline, without attempts left, or with a cancel
    asked for; the reaper ends those. So are requests of owners that run as many as they may.
    """
    claimable = (
        Request.cancel_requested_at.is_(None),
        Request.attempts_used < attempts_limit,
        Request.owner.not_in(limits.owners_at_limit(session)),
        may_start(),
    )
    token = uuid.uuid4().hex
    for owner in turns.owners_in_turn(session, stage, *claimable):
        row = _take(session, stage, owner, *claimable, token=token, worker=worker, lease_s=lease_s)
        if row is not None:
            break
    else:
        return None
    turns.take(session, row.owner, stage)
    session.execute(
        insert(Attempt).values(
            token=token, request_id=row.id, number=row.attempt, stage=stage, worker=worker
        )
    )
    return Claim(
        request_id=row.id,
        token=token,
        stage=Stage(row.stage),
        attempt=row.attempt,
        attempts_used=row.attempts_used,
        attempts_limit=attempts_limit,
        worker=worker,
        owner=row.owner,
        endpoint=row.endpoint,
        mode=row.mode,
        input=row.input,
        storage_prefix=row.storage_prefix,
        prepared=row.prepared,
        no_retry=row.no_retry,
        cancel_requested=row.cancel_requested_at is not None,
        purpose=Purpose(row.purpose),
        waited_s=(row.started_at or 0.0) - row.created_at if row.attempt == 1 else None,
    )


def _take(
    session: Session,
    stage: Stage,
    owner: str,
    *claimable: ColumnElement[bool],
    token: str,
    worker: str,
    lease_s: float,
) -> Request | None:
    """``owner``'s next request, now of ``worker``; None where others have just taken them all."""
    next_id = (
        select(Request.id)
        .where(
            Request.state == State.QUEUED,
            Request.stage == stage,
            Request.owner == owner,
            *claimable,
        )
        .order_by(Request.priority, Request.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return _update_one(
        session,
        Request.id == next_id.scalar_subquery(),
        Request.state == State.QUEUED,
        state=State.RUNNING,
        attempt=Request.attempt + 1,
        attempts_used=Request.attempts_used + 1,
        lease_token=token,
        lease_expires_at=db_now() + lease_s,
        worker=worker,
        started_at=func.coalesce(Request.started_at, db_now()),
    )


def renew(session: Session, claim: Claim, lease_s: float = LEASE_S) -> RenewResult:
    """Move the lease's end to ``lease_s`` from now. Raises `LeaseLost`."""
    return RenewResult.of(_owned(session, claim, lease_expires_at=db_now() + lease_s))


def progress(
    session: Session,
    claim: Claim,
    *,
    progress: Mapping[str, Any] | None = None,
    logs: Iterable[Log] = (),
    events: Iterable[Happened] = (),
    granted: Iterable[Wish] = (),
) -> RenewResult:
    """Record what happened since the last call. Does not extend the lease. Raises `LeaseLost`."""
    values: dict[str, Any] = {} if progress is None else {"progress": dict(progress)}
    values |= {_COLUMN[wish]: None for wish in granted}
    row = _owned(session, claim, **values)
    log(session, row.id, *logs)
    lines = [
        {"request_id": row.id, "kind": e.kind, "data": dict(e.data), "ts": e.ts or db_now()}
        for e in events
    ]
    for line in lines:
        session.execute(insert(Event).values(**line))
    return RenewResult.of(row)


def advance(session: Session, claim: Claim, prepared: Mapping[str, Any]) -> State:
    """Prepared: queue it for the GPU, with a fresh budget of attempts. Raises `LeaseLost`.

    Returns:
        `State.QUEUED`, or `State.COMPLETED` when a cancel had been asked for.
    """
    row = _owned(session, claim)
    assert row.purpose != Purpose.CHECK, "a check is never trained"
    _end_attempt(session, claim.token, Outcome.ADVANCED)
    row.prepared = dict(prepared)
    if row.cancel_requested_at is None:
        row.stage = Stage.TRAIN
        row.attempts_used = 0
    return requeue(row)


def prepare_again(session: Session, claim: Claim) -> State:
    """What was prepared is gone from the store: back to the prepare stage. Raises `LeaseLost`."""
    row = _owned(session, claim)
    _end_attempt(session, claim.token, Outcome.RELEASED, "what was prepared is gone")
    log(
        session,
        row.id,
        Log("What was prepared is gone from the store; preparing it again.", "WARN"),
    )
    if row.cancel_requested_at is None:
        row.stage = Stage.PREPARE
        row.prepared = None
        row.attempts_used = 0
    return requeue(row)


def release(session: Session, claim: Claim, reason: str) -> State:
    """Give the request back without using up the attempt. Raises `LeaseLost`."""
    row = _owned(session, claim)
    _end_attempt(session, claim.token, Outcome.RELEASED, reason)
    log(session, row.id, Log(f"Given back: {reason}. Another worker goes on."))
    row.attempts_used -= 1
    return requeue(row)


def complete(
    session: Session,
    claim: Claim,
    result_body: Mapping[str, Any],
    billable_units: int,
    inference_time: float,
    *,
    prepared: Mapping[str, Any] | None = None,
) -> None:
    """The result and what it costs, together. Raises `LeaseLost`.

    A check gives what it ``prepared``: its dataset is kept as long as the request is.
    """
    row = _owned(session, claim)
    reach("complete.before_ledger")
    _end_attempt(session, claim.token, Outcome.COMPLETED)
    if prepared is not None:
        row.prepared = dict(prepared)
    finish(
        row,
        status=200,
        body=result_body,
        billable_units=billable_units,
        inference_time=inference_time,
    )
    session.flush()
    reach("complete.before_commit")


def fail(
    session: Session,
    claim: Claim,
    *,
    status: int,
    body: Mapping[str, Any],
    error: str,
    error_type: str,
    retryable: bool,
) -> State:
    """End it with ``status`` and ``body``, or queue it again. Raises `LeaseLost`.

    It is queued again when ``retryable`` and attempts are left and its user did not forbid it.

    Returns:
        The state it is in now: `State.QUEUED` or `State.COMPLETED`.
    """
    row = _owned(session, claim)
    again = retryable and not row.no_retry and row.attempts_used < claim.attempts_limit
    _end_attempt(session, claim.token, Outcome.RETRIED if again else Outcome.FAILED, error)
    if again:
        log(
            session,
            row.id,
            Log(f"Attempt {row.attempts_used} failed, trying again: {error}", "WARN"),
        )
        return requeue(row)
    log(session, row.id, Log(error, "ERROR"))
    finish(row, status=status, body=body, error=error, error_type=error_type)
    return State.COMPLETED


def cancelled(session: Session, claim: Claim) -> None:
    """The worker has stopped because its user asked for it. Raises `LeaseLost`."""
    row = _owned(session, claim)
    _end_attempt(session, claim.token, Outcome.CANCELLED)
    finish_cancelled(row)


class CancelAnswer:
    """What `request_cancel` found."""

    REQUESTED = "CANCELLATION_REQUESTED"
    ALREADY_COMPLETED = "ALREADY_COMPLETED"
    NOT_FOUND = "NOT_FOUND"


def _locked(session: Session, request_id: str, owner: str) -> Request | None:
    """``owner``'s request, held until the transaction ends."""
    return session.scalar(
        select(Request)
        .where(Request.id == request_id, Request.owner == owner)
        .with_for_update()
        # The caller may have looked the row up before it was locked.
        .execution_options(populate_existing=True)
    )


def request_cancel(session: Session, request_id: str, owner: str) -> str:
    """Ask for the end of a request; a queued one ends at once. Returns a `CancelAnswer`."""
    row = _locked(session, request_id, owner)
    if row is None:
        return CancelAnswer.NOT_FOUND
    if row.state == State.COMPLETED:
        return CancelAnswer.ALREADY_COMPLETED
    if row.cancel_requested_at is None:
        row.cancel_requested_at = session.scalar(select(db_now()))
        log(session, row.id, Log("Cancellation requested."))
    if row.state == State.QUEUED:
        finish_cancelled(row)
    return CancelAnswer.REQUESTED


def request_wish(session: Session, request_id: str, owner: str, wish: Wish) -> float:
    """Ask a running training for something. Returns when it was asked for: while that waits to be
    granted, asking again changes nothing.

    Raises `UnknownRequest`, and `NotTraining` for what is not among its steps.
    """
    row = _locked(session, request_id, owner)
    if row is None:
        raise UnknownRequest
    _check_trains(row)
    waiting = wishes_of(row).get(wish)
    if waiting is not None:
        return waiting
    now = session.scalars(select(db_now())).one()
    setattr(row, _COLUMN[wish], now)
    log(session, row.id, Log(_ASKED[wish]))
    return now


def wishes_of(row: Request) -> dict[Wish, float]:
    """Those that wait, and since when."""
    found = {wish: getattr(row, column) for wish, column in _COLUMN.items()}
    return {wish: since for wish, since in found.items() if since is not None}


def _check_trains(row: Request) -> None:
    if row.state == State.COMPLETED:
        raise NotTraining("This request has ended.")
    if row.cancel_requested_at is not None:
        raise NotTraining("This request is being cancelled.")
    if row.stage != Stage.TRAIN or row.state != State.RUNNING:
        raise NotTraining("This request is not training yet. Ask again when its steps have begun.")
    step, of = ((row.progress or {}).get(name) for name in ("step", "of"))
    if step is not None and step == of:
        raise NotTraining("Its last step is done; the LoRA and the last previews are on their way.")


def log(session: Session, request_id: str, *lines: Log) -> None:
    """Append to a request's log."""
    for line in lines:
        session.execute(
            insert(LogLine).values(
                request_id=request_id,
                message=line.message[:MAX_LOG_CHARACTERS],
                level=line.level[:8],
                ts=line.ts or db_now(),
            )
        )


def may_start() -> ColumnElement[bool]:
    """Not past its start deadline, which binds only until the first attempt begins."""
    return or_(
        Request.started_at.is_not(None),
        Request.start_deadline.is_(None),
        Request.start_deadline > db_now(),
    )


def requeue(row: Request) -> State:
    """Back into its stage's queue, with a wake-up due; a request to be cancelled ends instead."""
    if row.cancel_requested_at is not None:
        finish_cancelled(row)
        return State.COMPLETED
    _drop_lease(row)
    row.state = State.QUEUED
    row.woken_at = None
    row.wakes = 0
    return State.QUEUED


def finish(
    row: Request,
    *,
    status: int,
    body: Mapping[str, Any],
    error: str | None = None,
    error_type: str | None = None,
    billable_units: int = 0,
    inference_time: float | None = None,
) -> None:
    """The end of ``row``, which the caller holds locked. Nothing follows."""
    _drop_lease(row)
    _drop_wishes(row)
    row.state = State.COMPLETED
    row.result_status = status
    row.result_body = dict(body)
    row.error = error
    row.error_type = error_type
    row.billable_units = billable_units
    row.inference_time = inference_time
    # The column takes an SQL expression as well; its declared type is what is read back.
    row.finished_at = db_now()
    if row.webhook_url is not None:
        row.webhook_next_at = db_now()


def finish_cancelled(row: Request) -> None:
    """fal's end of a cancelled request: COMPLETED on the wire, its result is 499."""
    finish(
        row,
        status=CLIENT_CANCELLED,
        body={"detail": CANCELLED_TEXT, "error_type": "client_cancelled"},
        error=CANCELLED_TEXT,
        error_type="client_cancelled",
    )


def _drop_lease(row: Request) -> None:
    if row.state == State.RUNNING:
        limits.slot_freed(row)
    row.lease_token = None
    row.lease_expires_at = None
    row.worker = None


def _drop_wishes(row: Request) -> None:
    session = object_session(row)
    assert session is not None
    for wish in wishes_of(row):
        setattr(row, _COLUMN[wish], None)
        log(session, row.id, Log(f"It ended before the {wish} that was asked for.", "WARN"))


def _owned(session: Session, claim: Claim, **values: Any) -> Request:
    """The claim's row, written under its token and so locked until the transaction ends."""
    row = _update_one(
        session,
        Request.id == claim.request_id,
        Request.lease_token == claim.token,
        Request.state == State.RUNNING,
        # An UPDATE needs a value; this one changes nothing.
        **(values or {"lease_token": claim.token}),
    )
    if row is None:
        raise LeaseLost(claim)
    return row


def _update_one(session: Session, *where: ColumnElement[bool], **values: Any) -> Request | None:
    return session.scalars(
        update(Request)
        .where(*where)
        .values(**values)
        .returning(Request)
        .execution_options(populate_existing=True, synchronize_session=False)
    ).one_or_none()


def _end_attempt(session: Session, token: str, outcome: Outcome, detail: str | None = None) -> None:
    session.execute(
        update(Attempt)
        .where(Attempt.token == token)
        .values(outcome=outcome, ended_at=db_now(), detail=detail)
        .execution_options(synchronize_session=False)
    )
