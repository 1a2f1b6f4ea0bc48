"""Requests that have ended with a webhook, and deliverers to send it."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.db.engine import AsyncDatabase, Database
from app.db.models import Stage, WebhookAttempt
from app.fetch import FetchPolicy
from app.requests import lifecycle
from app.storage import Storage
from app.storage.local import LocalStorage
from app.storage.signing import UrlSigner
from app.webhooks.deliverer import Deliverer
from app.webhooks.deliveries import Outcome
from app.webhooks.keys import KeyRing
from app.webhooks.schedule import SCHEDULE, Schedule
from app.webhooks.sender import Sender
from tests.app.conftest import OWNER, put, row, submit
from tests.app.test_lifecycle import claimed, do
from tests.app.webhooks.receiver import Receiver, receiving

SECRET = b"s" * 32
PUBLIC_URL = "http://127.0.0.1:8000"
AT_ONCE = replace(SCHEDULE, gaps_s=(0.0,) * 30)
"""All attempts, without the waits between them."""
ERROR_BODY = {"detail": [{"loc": ["body", "training_data_url"], "msg": "bad", "type": "x"}]}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    signer = UrlSigner(SECRET, PUBLIC_URL)
    return LocalStorage(tmp_path / "storage", signer, url_expiry_s=3600)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


def policy(*receivers: Receiver) -> FetchPolicy:
    """Loopback is allowed, at these ports."""
    return FetchPolicy.allowing(["127.0.0.1"], [receiver.port for receiver in receivers])


def succeed(database: Database, url: str | None, body: dict[str, Any] | None = None) -> str:
    """A request that ended well."""
    request_id = submit(database, webhook_url=url)
    do(database, lifecycle.advance, claimed(database), {})
    train = claimed(database, Stage.TRAIN)
    do(database, lifecycle.complete, train, body or {"lora_file": None}, 100, 1.5)
    return request_id


def fail(database: Database, url: str | None) -> str:
    """A request that ended with its user's fault."""
    request_id = submit(database, webhook_url=url)
    do(
        database,
        lifecycle.fail,
        claimed(database),
        status=422,
        body=ERROR_BODY,
        error="bad",
        error_type="invalid_archive",
        retryable=False,
    )
    return request_id


def cancel(database: Database, url: str | None) -> str:
    """A request that was cancelled while queued: the quickest end."""
    request_id = submit(database, webhook_url=url)
    do(database, lifecycle.request_cancel, request_id, OWNER)
    return request_id


def attempts(database: Database, request_id: str) -> list[WebhookAttempt]:
    with database.read() as session:
        return list(
            session.scalars(
                select(WebhookAttempt)
                .where(WebhookAttempt.request_id == request_id)
                .order_by(WebhookAttempt.id)
            )
        )


def due(database: Database, request_id: str) -> None:
    """The time has come, whatever the schedule said; also for a lease."""
    put(database, request_id, webhook_next_at=0.0)


def pending(database: Database, request_id: str) -> bool:
    return row(database, request_id).webhook_next_at is not None


Work = Callable[[Sequence[Deliverer]], Coroutine[Any, Any, None]]


def with_deliverers(
    database_url: str,
    storage: Storage,
    policy: FetchPolicy,
    work: Work,
    *,
    number: int = 1,
    schedule: Schedule = AT_ONCE,
    grace_s: float = 5.0,
) -> None:
    """Run ``work`` with ``number`` gateways' deliverers, each with its own connections."""

    async def run() -> None:
        databases = [AsyncDatabase(database_url) for _ in range(number)]
        senders = [Sender(policy) for _ in range(number)]
        try:
            await work(
                [
                    Deliverer(
                        database,
                        storage,
                        KeyRing(SECRET),
                        sender,
                        PUBLIC_URL,
                        schedule=schedule,
                        poll_s=0.02,
                        grace_s=grace_s,
                    )
                    for database, sender in zip(databases, senders, strict=True)
                ]
            )
        finally:
            for sender in senders:
                sender.close()
            for database in databases:
                await database.close()

    asyncio.run(run())


async def once(deliverers: Sequence[Deliverer]) -> None:
    """Everything that is due, once."""
    await asyncio.gather(*(deliverer.start_due() for deliverer in deliverers))
    await asyncio.gather(*(deliverer.finish() for deliverer in deliverers))


def run_sender(sender: Sender, url: str) -> Outcome:
    """One POST."""

    async def run() -> Outcome:
        try:
            return await sender.post(url, b"{}", {}, 10.0)
        finally:
            sender.close()

    return asyncio.run(run())
