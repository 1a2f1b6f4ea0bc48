"""The table of keys. Functions take a `Session` and are part of the caller's transaction."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.models import ApiKey, BrowserSession, Request, State, Upload

ID_PREFIX: Final = "rs-"
"""Owners of keys from the environment begin with ``key-``; the single user is ``local``."""
ID_BYTES: Final = 8
MAX_NAME_CHARACTERS: Final = 100
MAX_COUNT: Final = (1 << 31) - 1
"""Of requests: what an INTEGER holds."""
SECRET_BYTES: Final = 32
"""256 bits: nobody finds a key by trying, so its plain SHA-256 is safe to store."""


@dataclass(frozen=True)
class Limits:
    """What a key may use at a time; None: without limit."""

    max_queued: int | None = None
    """Requests that wait for a worker, in whichever stage."""
    max_running: int | None = None
    """Requests that a worker holds, in whichever stage."""
    max_storage_bytes: int | None = None
    """Uploaded files, their parts, and uploads under way."""


@dataclass(frozen=True)
class Usage:
    """What a key uses now of what `Limits` limits."""

    queued: int = 0
    running: int = 0
    storage_bytes: int = 0


class UnknownKey(LookupError):
    """No key has this id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no key has the id {id!r}; `reelsmith keys list` shows them")


def digest_of(key: str) -> str:
    """What is stored of ``key``, and found by it: SHA-256, hexadecimal."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def create(session: Session, name: str, limits: Limits) -> tuple[str, str]:
    """A new key: (its id, the key itself). The latter can't be had again."""
    id = ID_PREFIX + secrets.token_hex(ID_BYTES)
    key = f"{id}:{secrets.token_urlsafe(SECRET_BYTES)}"
    session.add(ApiKey(id=id, digest=digest_of(key), name=name, **vars(limits)))
    return id, key


def get(session: Session, id: str) -> ApiKey:
    """Locked until the transaction ends. Raises `UnknownKey`."""
    found = session.scalar(select(ApiKey).where(ApiKey.id == id).with_for_update())
    if found is None:
        raise UnknownKey(id)
    return found


def every(session: Session) -> Sequence[ApiKey]:
    """All keys, the oldest first, revoked ones too."""
    return session.scalars(select(ApiKey).order_by(ApiKey.created_at, ApiKey.id)).all()


def revoke(session: Session, id: str) -> float:
    """From now on nobody enters with it, and its browser sessions are over. What it submitted goes
    on. Returns since when; raises `UnknownKey`."""
    found = get(session, id)
    if found.revoked_at is None:
        found.revoked_at = session.scalars(select(db_now())).one()
    session.execute(delete(BrowserSession).where(BrowserSession.owner == id))
    return found.revoked_at


def set_limits(session: Session, id: str, **changes: int | None) -> ApiKey:
    """Change the named limits (fields of `Limits`). Raises `UnknownKey`."""
    found = get(session, id)
    for name, value in changes.items():
        setattr(found, name, value)
    # Requests that were passed over may start now; a worker that is told in vain finds nothing.
    session.execute(
        update(Request)
        .where(Request.owner == id, Request.state == State.QUEUED)
        .values(woken_at=None, wakes=0)
        .execution_options(synchronize_session=False)
    )
    return found


def usage(session: Session) -> dict[str, Usage]:
    """By owner; who uses nothing is not in it."""
    queued, running = (
        _by_owner(
            session,
            select(Request.owner, func.count())
            .where(Request.state == state)
            .group_by(Request.owner),
        )
        for state in (State.QUEUED, State.RUNNING)
    )
    stored = _by_owner(
        session, select(Upload.owner, func.sum(Upload.size_bytes)).group_by(Upload.owner)
    )
    return {
        owner: Usage(queued.get(owner, 0), running.get(owner, 0), stored.get(owner, 0))
        for owner in queued.keys() | running.keys() | stored.keys()
    }


def _by_owner(session: Session, numbers: Select[str, int]) -> dict[str, int]:
    # PostgreSQL's sum is a Decimal.
    return {owner: int(number) for owner, number in session.execute(numbers)}
