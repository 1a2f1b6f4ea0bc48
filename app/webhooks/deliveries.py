"""Which webhooks are due, who sends them, and what came of it: the tables' side.

A request's ``webhook_next_at`` is when its webhook is due. `claim` moves it past the end of the
attempt, which is the lease: whoever dies while sending leaves it due again. A claim is named by
``webhook_tries``, so one that lost its lease changes nothing but its own line.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import ColumnElement, and_, case, func, insert, not_, select, update
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.models import Request, State, WebhookAttempt
from app.requests.lifecycle import Log, log
from app.webhooks.schedule import Schedule

MAX_LISTED: Final = 200


@dataclass(frozen=True)
class Delivery:
    """One attempt, to be made now."""

    row: Request
    """As it was when claimed; its result does not change any more, unless it expires."""
    number: int
    attempt_id: int


@dataclass(frozen=True)
class Outcome:
    """What an attempt led to."""

    error: str | None = None
    """Ends a sentence about the attempt. None: it was delivered."""
    status: int | None = None
    """The receiver's; None: it gave no answer."""
    final: bool = False
    """Another attempt would not go better."""
    seconds: float | None = None


@dataclass(frozen=True)
class Busy:
    """Whose webhooks wait, because enough of them are under way."""

    owners: Collection[str] = field(default_factory=tuple)
    receivers: Collection[tuple[str, str]] = field(default_factory=tuple)
    """Owner, and the URL's beginning."""

    def where(self) -> list[ColumnElement[bool]]:
        return [
            Request.owner.not_in(self.owners),
            *(
                not_(
                    and_(
                        Request.owner == owner,
                        Request.webhook_url.startswith(origin, autoescape=True),
                    )
                )
                for owner, origin in self.receivers
            ),
        ]


def any_due(session: Session, busy: Busy) -> bool:
    """Whether `claim` would find something. Only reads, so it may be asked every second."""
    return session.scalar(select(Request.number).where(*_due(busy)).limit(1)) is not None


def claim(session: Session, schedule: Schedule, busy: Busy, limit: int) -> list[Delivery]:
    """Take up to ``limit`` due deliveries, the longest overdue first."""
    due = (
        select(Request.number)
        .where(*_due(busy))
        .order_by(Request.webhook_next_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    timeout_s = case(
        (Request.webhook_tries == 0, schedule.first_timeout_s), else_=schedule.timeout_s
    )
    rows = session.scalars(
        update(Request)
        .where(Request.number.in_(select(due.c.number)))
        .values(
            webhook_next_at=db_now() + timeout_s + schedule.lease_margin_s,
            webhook_tries=Request.webhook_tries + 1,
        )
        .returning(Request)
        .execution_options(populate_existing=True, synchronize_session=False)
    ).all()
    return [
        Delivery(
            row,
            row.webhook_tries,
            session.scalars(
                insert(WebhookAttempt)
                .values(request_id=row.id, number=row.webhook_tries)
                .returning(WebhookAttempt.id)
            ).one(),
        )
        for row in rows
    ]


def record(session: Session, delivery: Delivery, outcome: Outcome, schedule: Schedule) -> None:
    """Write down what came of an attempt, and when the next one is due."""
    session.execute(
        update(WebhookAttempt)
        .where(WebhookAttempt.id == delivery.attempt_id)
        .values(seconds=outcome.seconds, status=outcome.status, error=outcome.error)
        .execution_options(synchronize_session=False)
    )
    wait_s = None if outcome.error is None else _wait_s(session, delivery, outcome, schedule)
    still_ours = session.scalars(
        update(Request)
        .where(Request.id == delivery.row.id, Request.webhook_tries == delivery.number)
        .values(webhook_next_at=None if wait_s is None else db_now() + wait_s)
        .returning(Request.expired_at)
        .execution_options(synchronize_session=False)
    ).all()
    if still_ours and still_ours[0] is None:
        log(session, delivery.row.id, _log_line(delivery, outcome, wait_s))


class RedeliveryRefused(Exception):
    """The text says why."""


def redeliver(session: Session, request_id: str) -> None:
    """Make a completed request's webhook due now, with the whole schedule before it.

    Raises:
        RedeliveryRefused: there is nothing to send.
    """
    row = session.scalar(select(Request).where(Request.id == request_id).with_for_update())
    if row is None:
        raise RedeliveryRefused(f"There is no request {request_id}.")
    if row.expired_at is not None:
        raise RedeliveryRefused("The request's result has expired; there is nothing to send.")
    if row.webhook_url is None:
        raise RedeliveryRefused("The request was submitted without a webhook.")
    if row.state != State.COMPLETED:
        raise RedeliveryRefused("The request has not ended; its webhook follows by itself.")
    row.webhook_tries = 0
    row.webhook_next_at = db_now()


def recent(
    session: Session, request_id: str | None = None, owner: str | None = None
) -> list[Request]:
    """Requests with a webhook, the newest first."""
    query = select(Request).where(Request.webhook_url.is_not(None))
    if owner is not None:
        query = query.where(Request.owner == owner)
    if request_id is not None:
        query = query.where(Request.id == request_id)
    return list(session.scalars(query.order_by(Request.number.desc()).limit(MAX_LISTED)))


def attempts(session: Session, request_ids: Collection[str]) -> dict[str, list[WebhookAttempt]]:
    """The attempts of these requests, the oldest first."""
    found: dict[str, list[WebhookAttempt]] = {id: [] for id in request_ids}
    for attempt in session.scalars(
        select(WebhookAttempt)
        .where(WebhookAttempt.request_id.in_(request_ids))
        .order_by(WebhookAttempt.id)
    ):
        found[attempt.request_id].append(attempt)
    return found


def num_due(session: Session) -> int:
    """Webhooks that are not delivered and not given up, those under way included."""
    return (
        session.scalar(
            select(func.count()).select_from(Request).where(Request.webhook_next_at.is_not(None))
        )
        or 0
    )


def _due(busy: Busy) -> list[ColumnElement[bool]]:
    return [Request.webhook_next_at <= db_now(), *busy.where()]


def _wait_s(
    session: Session, delivery: Delivery, outcome: Outcome, schedule: Schedule
) -> float | None:
    """Seconds until the next attempt; None: there is none."""
    wait_s = schedule.gap_s(delivery.number, delivery.row.id)
    if outcome.final or wait_s is None:
        return None
    now = session.scalar(select(db_now())) or 0.0
    ended = delivery.row.finished_at or now
    return wait_s if now + wait_s < ended + schedule.give_up_after_s else None


def _log_line(delivery: Delivery, outcome: Outcome, wait_s: float | None) -> Log:
    if outcome.error is None:
        return Log(f"Webhook delivered (attempt {delivery.number}).")
    after = "That was the last attempt." if wait_s is None else f"Next attempt in {wait_s:.0f} s."
    return Log(f"Webhook attempt {delivery.number} failed: {outcome.error}. {after}", "WARN")
