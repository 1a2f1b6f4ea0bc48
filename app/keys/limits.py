"""Limits of keys on their requests, held in the transaction that makes or takes the request.

Owners without a row in `api_keys` (keys of the environment, the single user) have none.
"""

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Select, func, select, text
from sqlalchemy.orm import Session, object_session

from app.db.models import ApiKey, Request, Stage, State
from app.errors import QueueLimitReached
from app.keys.store import ID_PREFIX

CLAIM_LOCK: Final = 0x7265656D
"""PostgreSQL advisory lock ("reem"); on SQLite the write transaction is the lock."""


class QueueRoom:
    """How many more requests each of ``owners`` may have waiting.

    Their keys stay locked until the transaction ends: two gateways that submit for one key at the
    same moment count one after the other.
    """

    def __init__(self, session: Session, owners: Iterable[str]) -> None:
        # Other owners have no row: the single user and keys of the environment cost no query.
        keys = sorted(owner for owner in set(owners) if owner.startswith(ID_PREFIX))
        self._limits = _max_queued(session, keys) if keys else {}
        self._waiting: dict[str, int] = dict.fromkeys(self._limits, 0)
        if self._limits:
            counted = (
                select(Request.owner, func.count())
                .where(Request.state == State.QUEUED, Request.owner.in_(self._limits))
                .group_by(Request.owner)
            )
            self._waiting |= {owner: num for owner, num in session.execute(counted)}

    def take(self, owner: str) -> QueueLimitReached | None:
        """One place of ``owner``'s, or why there is none."""
        limit = self._limits.get(owner)
        if limit is None:
            return None
        waiting = self._waiting[owner]
        if waiting >= limit:
            return QueueLimitReached(
                f"Of this key's requests {waiting} wait, and {limit} may. Submit again when one of "
                "them has started, or cancel one."
            )
        self._waiting[owner] += 1
        return None


def _max_queued(session: Session, keys: list[str]) -> dict[str, int]:
    """The limits of those that have one, locked."""
    found = session.execute(
        select(ApiKey.id, ApiKey.max_queued)
        .where(ApiKey.id.in_(keys), ApiKey.max_queued.is_not(None))
        # In one order everywhere: no two wait for each other.
        .order_by(ApiKey.id)
        .with_for_update()
    )
    return {id: limit for id, limit in found if limit is not None}


def owners_at_limit(session: Session) -> list[str]:
    """Owners that have as many requests running as they may. Call it before claiming.

    Where any key is limited, claims go one after the other from here to the end of the
    transaction; else two workers would count the same requests, and each start one more.
    """
    limited = select(ApiKey.id).where(ApiKey.max_running.is_not(None)).limit(1)
    if session.scalar(limited) is None:
        return []
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": CLAIM_LOCK})
    return passed_over(session)


def passed_over(session: Session) -> list[str]:
    """Owners that have as many requests running as they may: what they have waiting is passed over
    at this moment."""
    # Not of the ORM: every batch of status polls asks it.
    return list(session.connection().scalars(_AT_LIMIT))


def _at_limit() -> Select[str]:
    keys, requests = ApiKey.__table__, Request.__table__
    running = (
        select(requests.c.owner, func.count().label("num"))
        .where(requests.c.state == State.RUNNING)
        .group_by(requests.c.owner)
        .subquery()
    )
    return (
        select(keys.c.id)
        .select_from(keys.outerjoin(running, running.c.owner == keys.c.id))
        .where(keys.c.max_running <= func.coalesce(running.c.num, 0))
    )


_AT_LIMIT = _at_limit()


def slot_freed(row: Request) -> None:
    """``row``, held locked, stops running: its owner's next request needs a wake-up.

    The wake-up that it had may have found the owner at its limit, and started nothing.
    """
    session = object_session(row)
    assert session is not None
    limited = select(ApiKey.id).where(ApiKey.id == row.owner, ApiKey.max_running.is_not(None))
    if session.scalar(limited) is None:
        return
    for stage in Stage:
        following = session.scalar(
            select(Request)
            .where(
                Request.owner == row.owner, Request.state == State.QUEUED, Request.stage == stage
            )
            .order_by(Request.priority, Request.number)
            .limit(1)
            # One that is being claimed this moment is not the next any more.
            .with_for_update(skip_locked=True)
        )
        if following is not None:
            following.woken_at = None
            following.wakes = 0
