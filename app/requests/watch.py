"""Waiting for requests to change: one look at the database for everybody who waits.

Hundreds of streams of one gateway cost two queries per look, not two each; and a look is a poll
because it must see what any worker on any machine wrote, on SQLite as on PostgreSQL.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.requests.schemas import RequestStatus

LOOK_EVERY_S: Final = 0.5
"""How late a change is noticed at most, while the database is well."""
RETRY_S: Final = 5.0
"""Pause after a look that failed."""
IDS_PER_LOOK: Final = 500
"""Of one query: SQLite takes some 32,000 parameters, plans are best with few."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Snapshot:
    """A request as its watchers see it."""

    status: RequestStatus
    """Without log lines."""
    last_line: int
    """Id of its newest log line; 0: it has none."""
    last_event: int = 0
    """The same of its events."""
    stage: str = "prepare"
    progress: dict[str, Any] | None = None

    @property
    def completed(self) -> bool:
        return self.status.status == "COMPLETED"


Look = Callable[[Sequence[str]], Awaitable[dict[str, Snapshot]]]
"""The requests of these ids; one that is missing in the answer does not exist any more."""


@dataclass
class _Watched:
    latest: Snapshot | None = None
    gone: bool = False
    pokes: set[asyncio.Event] = field(default_factory=set)
    """One of each listener: something is new."""

    def poke(self) -> None:
        for event in self.pokes:
            event.set()


class Watcher:
    """Tells listeners what becomes of their requests. `run` does the looking."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._watched: dict[str, _Watched] = {}
        self._wanted = asyncio.Event()
        self._closed = False

    @property
    def num_listeners(self) -> int:
        return sum(len(watched.pokes) for watched in self._watched.values())

    async def changes(
        self, request_id: str, quiet_s: float
    ) -> AsyncGenerator[Snapshot | None, None]:
        """Each new snapshot of a request; None whenever nothing was new for ``quiet_s``.

        Ends after COMPLETED, when the request is gone, and when the gateway stops. Who is slow
        gets the newest snapshot only. Close it (`contextlib.aclosing`), or it is looked at forever.
        """
        watched = self._watched.setdefault(request_id, _Watched())
        poke = asyncio.Event()
        watched.pokes.add(poke)
        if watched.latest is not None:
            poke.set()
        self._wanted.set()
        seen: Snapshot | None = None
        try:
            while not self._closed and not watched.gone:
                if not await _set_within(poke, quiet_s):
                    yield None
                    continue
                poke.clear()
                if watched.latest is None or watched.latest == seen:
                    continue
                seen = watched.latest
                yield seen
                if seen.completed:
                    return
        finally:
            watched.pokes.discard(poke)
            if not watched.pokes:
                self._watched.pop(request_id, None)

    def close(self) -> None:
        """End everybody's waiting: the gateway stops."""
        self._closed = True
        for watched in self._watched.values():
            watched.poke()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wanted.wait()
            if not self._watched:
                self._wanted.clear()
                continue
            pause = LOOK_EVERY_S
            try:
                await self.look()
            except (SQLAlchemyError, OSError) as error:
                log.warning("watcher.failed", error=repr(error))
                pause = RETRY_S
            await asyncio.sleep(pause)

    async def look(self) -> None:
        """One look at all that is watched."""
        ids = list(self._watched)
        for start in range(0, len(ids), IDS_PER_LOOK):
            some = ids[start : start + IDS_PER_LOOK]
            found = await self._look(some)
            for request_id in some:
                watched = self._watched.get(request_id)
                if watched is None:  # its last listener left meanwhile
                    continue
                snapshot = found.get(request_id)
                if snapshot is None:
                    watched.gone = True
                    watched.poke()
                elif snapshot != watched.latest:
                    watched.latest = snapshot
                    watched.poke()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
