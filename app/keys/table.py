"""The keys of the database, as a gateway remembers them between requests."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.db.engine import AsyncDatabase
from app.db.models import ApiKey
from app.errors import Unavailable

FRESH_S: Final = 2.0
"""A revoked key opens for so long at most. Clients poll ten times a second: not one query each."""

log = structlog.get_logger()


@dataclass(frozen=True)
class _Known:
    began_at: float
    """When the read began: what was committed before is in it."""
    owners: Mapping[str, str]
    """Digest -> owner, of the keys that open."""
    any: bool
    """Whether a key was ever made, be it revoked by now."""


class KeyTable:
    """Looks keys up. Raises `Unavailable` where the database can't be asked: nobody enters then.

    A key that is not remembered is looked for in the database, so a new key works at once; all who
    wait for that share one query, however many wrong keys are tried.
    """

    def __init__(
        self, database: AsyncDatabase, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._clock = clock
        self._known: _Known | None = None
        self._reading = asyncio.Lock()

    async def owner_of(self, digest: str) -> str | None:
        """The id of the key with this digest; None for one that nobody has, or that is revoked."""
        # A lookup by the digest, not by the key: how long it takes tells nothing about a key.
        found = (await self._since(self._clock() - FRESH_S)).owners.get(digest)
        if found is None:
            found = (await self._since(self._clock())).owners.get(digest)
        return found

    async def opens(self, owner: str) -> bool:
        """Whether the key with this id opens, still."""
        return owner in (await self._since(self._clock() - FRESH_S)).owners.values()

    async def used(self) -> bool:
        """Whether there is a key, or was one."""
        return (await self._since(self._clock() - FRESH_S)).any

    async def _since(self, at: float) -> _Known:
        """What was read at ``at`` or later."""
        if self._known is not None and self._known.began_at >= at:
            return self._known
        async with self._reading:
            if self._known is None or self._known.began_at < at:
                began_at = self._clock()
                try:
                    owners, any = await self._database.read(_keys)
                except SQLAlchemyError as error:
                    log.error("keys.not_read", error=repr(error))
                    raise Unavailable from error
                self._known = _Known(began_at, owners, any)
            return self._known


def _keys(session: Session) -> tuple[dict[str, str], bool]:
    rows = session.execute(select(ApiKey.digest, ApiKey.id, ApiKey.revoked_at)).all()
    return {digest: id for digest, id, revoked_at in rows if revoked_at is None}, bool(rows)
