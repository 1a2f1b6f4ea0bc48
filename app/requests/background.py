"""What the gateway does beside answering: sending wake-ups, and mending what went wrong."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from app.db.engine import AsyncDatabase
from app.metrics.counts import REAPED
from app.requests import outbox, reaper, repository
from app.requests.files import stored_keys
from app.requests.outbox import Send
from app.requests.retention import Retention
from app.storage import Storage
from app.storage.multipart import sweep_parts
from app.storage.receiving import sweep_staged
from app.waiting import event_within

IDLE_S: Final = 5.0
"""How often the outbox is looked at unasked: rows that another gateway or the reaper made due."""
RETRY_S: Final = 1.0
"""Pause after a broker's refusal; doubled up to `RETRY_AT_MOST_S`."""
RETRY_AT_MOST_S: Final = 30.0
BURST_PAUSE_S: Final = 0.25
"""Between full batches of wake-ups: the broker's client takes most of a millisecond for each."""
SWEEP_EVERY_S: Final = 900.0
ENDED_BEFORE_S: Final = 600.0
"""When the rests of an ended request go: a worker that lost its lease has noticed by then."""
ABANDONED_AFTER_S: Final = 24 * 3600.0
"""A write that has not ended by then never will: the slowest upload allowed takes six hours."""

log = structlog.get_logger()


class Publisher:
    """Sends wake-ups outside of any request's path; a dead broker delays them and nothing else."""

    def __init__(self, database: AsyncDatabase, send: Send) -> None:
        self._database = database
        self._send = send
        self._work = asyncio.Event()

    def notify(self) -> None:
        """There may be something to send now."""
        self._work.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause = RETRY_S
        while True:
            await event_within(self._work, IDLE_S)
            self._work.clear()
            if await _survive("publisher", self.publish):
                pause = RETRY_S
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, RETRY_AT_MOST_S)
                self._work.set()

    async def publish(self) -> bool:
        """Send what is due. False: the broker refused some of it."""
        wakes = await self._database.read(outbox.due)
        if not wakes:
            return True
        sent = await asyncio.to_thread(outbox.send_all, wakes, self._send)
        if sent:
            await self._database.write(outbox.mark, sent)
        if len(wakes) >= outbox.BATCH:
            # Workers need far fewer than there are submits in a burst, and those come first.
            await asyncio.sleep(BURST_PAUSE_S)
            self._work.set()
        return len(sent) == len(wakes)


class Reaper:
    """Runs `reaper.reap` every ``interval_s``."""

    def __init__(
        self,
        database: AsyncDatabase,
        on_queued: Callable[[], None],
        *,
        interval_s: float,
        attempts_limit: int,
    ) -> None:
        self._database = database
        self._on_queued = on_queued
        self._interval_s = interval_s
        self._attempts_limit = attempts_limit

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await _survive("reaper", self.reap)
            await asyncio.sleep(self._interval_s)

    async def reap(self) -> bool:
        """One pass."""
        reaped = await self._database.write(reaper.reap, self._attempts_limit)
        for end, ids in vars(reaped).items():
            REAPED.labels(end).inc(len(ids))
        if reaped:
            log.info("reaper.pass", **vars(reaped))
            self._on_queued()
        return True


class Sweeper:
    """Makes the store ready, then removes what interrupted writes and uploads left in it, and what
    is older than the retention."""

    def __init__(
        self, storage: Storage, database: AsyncDatabase, staging: Path, retention_s: float = 0.0
    ) -> None:
        """``staging``: the folder of bodies that are on their way into the store."""
        self._storage = storage
        self._database = database
        self._staging = staging
        self._retention = Retention(database, storage, retention_s)
        self._prepared = False
        self._cleaned = (0.0, "")
        """Time and id of the last one whose rests are gone. Whoever ends later has a later time:
        they are looked at long after that."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            swept = await _survive("sweeper", self.sweep)
            await asyncio.sleep(SWEEP_EVERY_S if swept else RETRY_AT_MOST_S)

    async def sweep(self) -> bool:
        """One pass."""
        if not self._prepared:
            await asyncio.to_thread(self._storage.prepare)
            self._prepared = True
        await self._clean_up_ended()
        writes = await asyncio.to_thread(self._storage.sweep, ABANDONED_AFTER_S)
        uploads = await asyncio.to_thread(sweep_parts, self._storage)
        staged = await asyncio.to_thread(sweep_staged, self._staging, ABANDONED_AFTER_S)
        if writes or uploads or staged:
            log.info("sweeper.pass", writes=writes, uploads=uploads, staged=staged)
        expired = await self._retention.sweep()
        if expired:
            log.info("sweeper.expired", **vars(expired))
        return True

    async def _clean_up_ended(self) -> None:
        while ended := await self._database.read(
            repository.ended_lately, ENDED_BEFORE_S, self._cleaned
        ):
            for one in ended:
                await asyncio.to_thread(
                    clean_up, self._storage, one.storage_prefix, one.result_body
                )
                self._cleaned = (one.finished_at, one.id)


def clean_up(storage: Storage, prefix: str, body: Mapping[str, Any] | None) -> None:
    """Remove what no result names: checkpoints, and outputs of attempts that lost their lease.

    A completed request took its own checkpoints away; a failed, cancelled or lost one did not.
    """
    storage.delete_tree(f"{prefix}/checkpoints")
    named = set(stored_keys(body))
    for key in storage.list_keys(f"{prefix}/outputs"):
        if key not in named:
            storage.delete(key)


async def _survive(name: str, step: Callable[[], Awaitable[bool]]) -> bool:
    """Run ``step``; whatever it raises is logged, for the next round may do better."""
    try:
        return await step()
    except Exception as error:
        log.warning(f"{name}.failed", error=repr(error))
        return False
