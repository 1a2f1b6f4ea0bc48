"""The part of the gateway that sends webhooks. Any number of gateways may run one."""

import asyncio
import time
from collections import Counter
from typing import Final

import structlog

from app.db.engine import AsyncDatabase
from app.metrics.counts import WEBHOOKS
from app.settings import Settings
from app.storage import Storage
from app.waiting import event_within
from app.webhooks import deliveries
from app.webhooks.deliveries import Busy, Delivery, Outcome
from app.webhooks.keys import KeyRing
from app.webhooks.message import body_of, signature_headers
from app.webhooks.schedule import SCHEDULE, Schedule
from app.webhooks.sender import Sender
from app.webhooks.targets import policy_of
from preprocessing.failpoints import reach

POLL_S: Final = 1.0
"""How often is looked for due webhooks: workers complete requests in processes of their own."""
AT_ONCE: Final = 64
"""Deliveries under way. One costs a socket and its body."""
AT_ONCE_PER_OWNER: Final = 48
"""Of one key's requests: the webhooks of others go on."""
AT_ONCE_PER_RECEIVER: Final = 8
"""At one host, per owner: a dead one must not hold up the living, nor be overrun when it is back.
It may be exceeded by a part of one claim."""
GRACE_S: Final = 3.0
"""For deliveries under way when the gateway stops; the others are repeated after their lease."""

log = structlog.get_logger()


class Deliverer:
    """Claims what is due, sends it, records what came of it: at least once each."""

    def __init__(
        self,
        database: AsyncDatabase,
        storage: Storage,
        keys: KeyRing,
        sender: Sender,
        public_url: str,
        *,
        schedule: Schedule = SCHEDULE,
        poll_s: float = POLL_S,
        grace_s: float = GRACE_S,
    ) -> None:
        self._database = database
        self._storage = storage
        self._keys = keys
        self._sender = sender
        self._public_url = public_url
        self._schedule = schedule
        self._poll_s = poll_s
        self._grace_s = grace_s
        self._running: dict[asyncio.Task[None], Delivery] = {}
        self._room = asyncio.Event()

    @classmethod
    def of(cls, settings: Settings, database: AsyncDatabase, storage: Storage) -> "Deliverer":
        sender = Sender(policy_of(settings))
        schedule = SCHEDULE.at_pace(settings.webhook_pace)
        keys = KeyRing.of(settings)
        return cls(database, storage, keys, sender, settings.public_url, schedule=schedule)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                await event_within(self._room, self._poll_s)
                self._room.clear()
                try:
                    await self.start_due()
                except Exception as error:  # the database is away: the next round may do better
                    log.warning("webhooks.failed", error=repr(error))
        finally:
            await self.finish(self._grace_s)
            self._sender.close()

    async def start_due(self) -> None:
        """Begin everything that is due and has room."""
        while (room := AT_ONCE - len(self._running)) > 0:
            busy = self._busy()
            if not await self._database.read(deliveries.any_due, busy):
                break
            claimed = await self._database.write(
                deliveries.claim, self._schedule, busy, min(room, AT_ONCE_PER_RECEIVER)
            )
            for delivery in claimed:
                task = asyncio.create_task(self._deliver(delivery))
                self._running[task] = delivery
                task.add_done_callback(self._ended)
            if not claimed:
                break

    async def finish(self, timeout_s: float | None = None) -> None:
        """Wait for what is under way; what takes longer is broken off, and due after its lease."""
        if not self._running:
            return
        _, pending = await asyncio.wait(self._running, timeout=timeout_s)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    def _busy(self) -> Busy:
        running = [delivery.row for delivery in self._running.values()]
        owners = Counter(row.owner for row in running)
        receivers = Counter((row.owner, _origin(row.webhook_url or "")) for row in running)
        return Busy(
            [owner for owner, number in owners.items() if number >= AT_ONCE_PER_OWNER],
            [key for key, number in receivers.items() if number >= AT_ONCE_PER_RECEIVER],
        )

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        self._room.set()

    async def _deliver(self, delivery: Delivery) -> None:
        row = delivery.row
        try:
            reach("webhook.before_post")
            outcome = await self._outcome(delivery)
            reach("webhook.after_post")
            await self._database.write(deliveries.record, delivery, outcome, self._schedule)
            reach("webhook.after_mark")
        except Exception as error:  # database or store: it is due again after its lease
            log.warning("webhook.not_recorded", request_id=row.id, error=repr(error))
            return
        ended = "failed" if outcome.error else "delivered"
        WEBHOOKS.labels("given up" if outcome.final else ended).inc()
        log.info(
            "webhook.delivered" if outcome.error is None else "webhook.failed",
            request_id=row.id,
            # The URL's path and query may hold the receiver's secret.
            receiver=_origin(row.webhook_url or ""),
            attempt=delivery.number,
            status=outcome.status,
            error=outcome.error,
            s=round(outcome.seconds or 0.0, 3),
        )

    async def _outcome(self, delivery: Delivery) -> Outcome:
        row = delivery.row
        if row.expired_at is not None:
            return Outcome("the request's result has expired", final=True)
        body = await asyncio.to_thread(body_of, row, self._storage, self._public_url)
        key = await self._database.read(self._keys.signing)
        if key is None:
            key = await self._database.write(self._keys.ensure)
        headers = signature_headers(key.private, row.id, row.owner, int(time.time()), body)
        return await self._sender.post(
            row.webhook_url or "", body, headers, self._schedule.timeout_of(delivery.number)
        )


def _origin(url: str) -> str:
    """``scheme://host:port``, as the URL spells it."""
    scheme, _, rest = url.partition("://")
    for mark in "/?#":
        rest = rest.partition(mark)[0]
    return f"{scheme}://{rest}"
