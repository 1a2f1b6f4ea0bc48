"""What a key uses of its limits, what its requests would have cost, and the keys there are.

Operators see all keys: the single user, and the keys of the environment, which only they can set.
Everybody else sees their own.
"""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import SINGLE_USER, Authenticator, is_operator, may_change_keys
from app.clock import DAY_S, db_now, iso8601
from app.db.engine import AsyncDatabase
from app.db.models import ApiKey, Request, State
from app.keys import store
from app.requests.listing import standing_of, usd_of

MAX_DAYS: Final = 90


class Limited(BaseModel):
    """Something with a limit; null: none."""

    used: int
    limit: int | None


class Day(BaseModel):
    day: str = Field(description="UTC, such as 2026-11-30.")
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    billable_units: int = 0
    usd: float = Field(
        default=0.0, description="What fal would have asked; nothing is charged here."
    )
    seconds: float = Field(default=0.0, description="Of work, successful or not.")


class KeyShown(BaseModel):
    """A key, without its secret, and what it uses now."""

    id: str
    name: str
    created_at: str | None
    revoked_at: str | None
    queued: Limited
    running: Limited
    storage_bytes: Limited
    mine: bool = Field(description="The key that asks.")


class Usage(BaseModel):
    key: KeyShown
    days: list[Day] = Field(description="Days on which something ended, the newest first.")


class Keys(BaseModel):
    keys: list[KeyShown] = Field(description="Yours; all of them for operators.")
    operator: bool
    may_change: bool = Field(description="Whether you may make and revoke keys here.")


def make_router(database: AsyncDatabase, authenticate: Authenticator) -> APIRouter:
    """``/usage`` and ``/keys``."""
    router = APIRouter(tags=["usage"])
    Owner = Annotated[str, Depends(authenticate)]

    @router.get("/usage")
    async def get_usage(owner: Owner, days: Annotated[int, Query(ge=1, le=MAX_DAYS)] = 30) -> Usage:
        """What this key uses now, and what ended in the last days."""
        return await database.read(_usage, owner, days)

    @router.get("/keys")
    async def get_keys(owner: Owner) -> Keys:
        """Keys with their limits, never their secrets."""
        return await database.read(_keys, owner)

    return router


def _usage(session: Session, owner: str, days: int) -> Usage:
    return Usage(key=_own(session, owner), days=_days(session, owner, days))


def _days(session: Session, owner: str, days: int) -> list[Day]:
    found: defaultdict[str, Day] = defaultdict(lambda: Day(day=""))
    ended = session.scalars(
        select(Request).where(
            Request.owner == owner,
            Request.state == State.COMPLETED,
            Request.finished_at > db_now() - days * DAY_S,
        )
    )
    for row in ended:
        day = datetime.fromtimestamp(row.finished_at or 0.0, UTC).date().isoformat()
        one = found[day]
        one.day = day
        standing = standing_of(row)
        setattr(one, standing, getattr(one, standing) + 1)
        one.billable_units += row.billable_units or 0
        one.usd = round(one.usd + (usd_of(row) or 0.0), 4)
        one.seconds = round(one.seconds + (row.inference_time or 0.0), 1)
    return sorted(found.values(), key=lambda day: day.day, reverse=True)


def _keys(session: Session, owner: str) -> Keys:
    own = _own(session, owner)
    if not is_operator(owner):
        return Keys(keys=[own], operator=False, may_change=False)
    used = store.usage(session)
    others = [
        _shown(row, used.get(row.id, store.Usage()), mine=False) for row in store.every(session)
    ]
    return Keys(keys=[own, *others], operator=True, may_change=may_change_keys(owner))


def _own(session: Session, owner: str) -> KeyShown:
    used = store.usage(session).get(owner, store.Usage())
    row = session.get(ApiKey, owner)
    if row is not None:
        return _shown(row, used, mine=True)
    name = "Single user" if owner == SINGLE_USER else "Key of the environment"
    return KeyShown(
        id=owner,
        name=name,
        created_at=None,
        revoked_at=None,
        queued=Limited(used=used.queued, limit=None),
        running=Limited(used=used.running, limit=None),
        storage_bytes=Limited(used=used.storage_bytes, limit=None),
        mine=True,
    )


def _shown(row: ApiKey, used: store.Usage, *, mine: bool) -> KeyShown:
    return KeyShown(
        id=row.id,
        name=row.name,
        created_at=iso8601(row.created_at),
        revoked_at=None if row.revoked_at is None else iso8601(row.revoked_at),
        queued=Limited(used=used.queued, limit=row.max_queued),
        running=Limited(used=used.running, limit=row.max_running),
        storage_bytes=Limited(used=used.storage_bytes, limit=row.max_storage_bytes),
        mine=mine,
    )
