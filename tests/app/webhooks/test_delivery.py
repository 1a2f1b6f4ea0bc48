"""What is sent, again and again until it arrives (`fal-protocol.md` C29, C31; R12, R14, T13)."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from structlog.testing import CapturingLogger

from app.db.engine import Database
from app.requests import lifecycle, reaper
from app.storage import Storage
from app.webhooks import deliverer, deliveries
from app.webhooks.deliverer import AT_ONCE_PER_RECEIVER, Deliverer
from app.webhooks.deliveries import Busy, Outcome
from app.webhooks.message import MAX_BODY_BYTES
from tests.app.conftest import put, row, submit
from tests.app.test_lifecycle import claimed, do, expire, messages
from tests.app.webhooks import receiver as faults
from tests.app.webhooks.conftest import (
    AT_ONCE,
    ERROR_BODY,
    PUBLIC_URL,
    attempts,
    cancel,
    due,
    fail,
    once,
    pending,
    policy,
    succeed,
    with_deliverers,
)
from tests.app.webhooks.receiver import Receiver, receiving, status

KEYS = {"request_id", "gateway_request_id", "status", "error", "payload"}


def send(
    database_url: str, storage: Storage, receiver: Receiver, rounds: int = 1, **options: Any
) -> None:
    async def work(deliverers: Sequence[Deliverer]) -> None:
        for _ in range(rounds):
            await once(deliverers)

    with_deliverers(database_url, storage, policy(receiver), work, **options)


def lost(database: Database, url: str) -> str:
    request_id = submit(database, webhook_url=url, no_retry=True)
    expire(database, claimed(database))
    do(database, reaper.reap)
    return request_id


def timed_out(database: Database, url: str) -> str:
    request_id = submit(database, webhook_url=url, start_timeout_s=60.0)
    put(database, request_id, start_deadline=1.0)
    do(database, reaper.reap)
    return request_id


def cancelled_while_running(database: Database, url: str) -> str:
    request_id = submit(database, webhook_url=url)
    held = claimed(database)
    do(database, lifecycle.request_cancel, request_id, held.owner)
    assert not pending(database, request_id)
    do(database, lifecycle.cancelled, held)
    return request_id


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (succeed, None),
        (fail, "Invalid status code: 422"),
        (cancel, "Invalid status code: 499"),
        (cancelled_while_running, "Invalid status code: 499"),
        (lost, "Invalid status code: 500"),
        (timed_out, "Invalid status code: 504"),
    ],
)
def test_every_end_is_told(
    database: Database,
    database_url: str,
    storage: Storage,
    receiver: Receiver,
    end: Any,
    error: str | None,
) -> None:
    request_id = end(database, receiver.url)
    assert pending(database, request_id)
    send(database_url, storage, receiver, rounds=2)
    (got,) = receiver.received
    assert got.headers["content-type"] == "application/json"
    body = got.json
    assert set(body) == KEYS
    assert body["request_id"] == body["gateway_request_id"] == request_id
    assert (body["status"], body["error"]) == ("OK" if error is None else "ERROR", error)
    assert body["payload"] == row(database, request_id).result_body
    if end is fail:
        assert body["payload"] == ERROR_BODY
    assert not pending(database, request_id)
    (attempt,) = attempts(database, request_id)
    assert (attempt.number, attempt.status, attempt.error) == (1, 200, None)
    assert attempt.seconds is not None
    assert messages(database, request_id)[-1] == "Webhook delivered (attempt 1)."


def test_a_request_without_a_webhook_is_never_due(database: Database) -> None:
    assert not pending(database, succeed(database, None))
    assert not do(database, deliveries.any_due, Busy())


def test_a_request_that_is_queued_again_tells_nothing(database: Database) -> None:
    request_id = submit(database, webhook_url="https://example.com/hook")
    expire(database, claimed(database))
    do(database, reaper.reap)
    assert not pending(database, request_id)


def test_files_have_urls_that_are_signed_anew(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    file = {"file_name": "lora.bin", "content_type": "application/octet-stream", "file_size": 7}
    stored = {**file, "key": "requests/x/lora.bin"}
    succeed(database, receiver.url, {"lora_file": stored, "video": None})
    send(database_url, storage, receiver)
    payload = receiver.received[0].json["payload"]
    assert payload["video"] is None
    url = payload["lora_file"].pop("url")
    assert payload["lora_file"] == file
    assert storage.key_of_own_url(url) == "requests/x/lora.bin"


@pytest.mark.parametrize("size", [MAX_BODY_BYTES - 200, MAX_BODY_BYTES])
def test_a_large_payload_is_left_out_and_says_where_it_is(
    database: Database, database_url: str, storage: Storage, receiver: Receiver, size: int
) -> None:
    body = {"text": "é" * (size // 2)}
    request_id = succeed(database, receiver.url, body)
    send(database_url, storage, receiver)
    got = receiver.received[0]
    assert len(got.body) <= MAX_BODY_BYTES
    if size < MAX_BODY_BYTES:
        assert got.json["payload"] == body
        return
    assert set(got.json) == KEYS | {"payload_error"}
    assert (got.json["status"], got.json["payload"]) == ("OK", None)
    mode = row(database, request_id)
    assert got.json["payload_error"].endswith(f"{PUBLIC_URL}/{mode.app}/requests/{request_id}")


def test_two_failures_then_success(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    receiver.answers = [status(500), status(404), status(204, body=b"")]
    request_id = succeed(database, receiver.url)
    send(database_url, storage, receiver, rounds=5)
    assert [(a.number, a.status) for a in attempts(database, request_id)] == [
        (1, 500),
        (2, 404),
        (3, 204),
    ]
    assert len({got.body for got in receiver.received}) == 1
    assert {got.headers["x-fal-webhook-request-id"] for got in receiver.received} == {request_id}
    assert not pending(database, request_id)
    assert (
        "Webhook attempt 1 failed: the receiver answers 500" in messages(database, request_id)[-3]
    )


def test_nine_failures_then_success(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    receiver.answers = [status(503)] * 9 + [status(200)]
    request_id = succeed(database, receiver.url)
    send(database_url, storage, receiver, rounds=12)
    assert len(receiver.received) == 10
    assert not pending(database, request_id)


def test_it_gives_up_after_31_tries(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    receiver.answers = [status(500)]
    request_id = succeed(database, receiver.url)
    send(database_url, storage, receiver, rounds=33)
    assert len(receiver.received) == 31
    assert not pending(database, request_id)
    assert messages(database, request_id)[-1].endswith("That was the last attempt.")


def test_it_gives_up_when_the_result_is_as_old_as_results_get(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    receiver.answers = [status(500)]
    request_id = succeed(database, receiver.url)
    finished = row(database, request_id).finished_at or 0.0
    put(database, request_id, finished_at=finished - AT_ONCE.give_up_after_s)
    send(database_url, storage, receiver, rounds=2)
    assert len(receiver.received) == 1
    assert not pending(database, request_id)


def test_what_has_expired_is_not_sent(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    request_id = succeed(database, receiver.url)
    put(database, request_id, expired_at=1.0, result_body=None)
    send(database_url, storage, receiver)
    assert not receiver.received
    assert not pending(database, request_id)
    assert attempts(database, request_id)[0].error == "the request's result has expired"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308, 304, 410])
def test_redirects_and_gone_end_it(
    database: Database, database_url: str, storage: Storage, code: int
) -> None:
    with receiving() as inside, receiving(status(code, ("Location", inside.url))) as receiver:
        request_id = succeed(database, receiver.url)
        send(database_url, storage, receiver, rounds=3)
        assert len(receiver.received) == 1
        assert not inside.received
    assert not pending(database, request_id)
    assert str(code) in (attempts(database, request_id)[0].error or "")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.hang, "no answer within 0.3 s"),
        (faults.trickle, "no answer within 0.3 s"),
        (faults.reset, "the connection breaks off before an answer"),
        (faults.silent_close, "the connection breaks off before an answer"),
        (faults.not_http, "the connection breaks off before an answer"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_no_answer_is_tried_again(
    database: Database,
    database_url: str,
    storage: Storage,
    receiver: Receiver,
    fault: faults.Answer,
    error: str,
) -> None:
    receiver.answers = [fault, status(200)]
    request_id = succeed(database, receiver.url)
    send(
        database_url,
        storage,
        receiver,
        rounds=2,
        schedule=replace(AT_ONCE, first_timeout_s=0.3, timeout_s=30.0),
    )
    first, second = attempts(database, request_id)
    assert (first.status, first.error) == (None, error)
    assert (second.status, second.error) == (200, None)
    assert not pending(database, request_id)


def test_nobody_listening_is_tried_again(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    with receiving() as closed:
        url = closed.url
    request_id = succeed(database, url)
    send(database_url, storage, closed)
    (attempt,) = attempts(database, request_id)
    assert attempt.error == "the receiver can't be connected"
    assert pending(database, request_id)


def test_an_endless_answer_is_not_read(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    receiver.answers = [faults.endless_body]
    request_id = succeed(database, receiver.url)
    started = time.monotonic()
    send(database_url, storage, receiver)
    assert time.monotonic() - started < 10
    assert receiver.sent < 32 * 1024**2  # sockets' buffers, not the body
    assert attempts(database, request_id)[0].status == 200


def test_the_first_try_and_the_others_have_their_timeouts(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    """While an attempt is under way, its row is due again only after its timeout."""
    request_id = succeed(database, receiver.url)
    schedule = replace(AT_ONCE, first_timeout_s=15.0, timeout_s=120.0, lease_margin_s=30.0)
    leases = []
    for _ in range(2):
        before = time.time()
        (delivery,) = do(database, deliveries.claim, schedule, Busy(), 10)
        leases.append((row(database, request_id).webhook_next_at or 0.0) - before)
        do(database, deliveries.record, delivery, Outcome("x"), schedule)
    assert leases == [pytest.approx(45.0, abs=5), pytest.approx(150.0, abs=5)]


def test_a_lost_claim_is_sent_again(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    """The gateway died between claiming and recording, before or after the POST."""
    request_id = succeed(database, receiver.url)
    (lost,) = do(database, deliveries.claim, AT_ONCE, Busy(), 10)
    send(database_url, storage, receiver)
    assert not receiver.received  # the lease holds
    due(database, request_id)
    send(database_url, storage, receiver)
    assert len(receiver.received) == 1
    assert not pending(database, request_id)
    first, second = attempts(database, request_id)
    assert (first.seconds, first.status, first.error) == (None, None, None)
    assert (second.number, second.status) == (2, 200)
    # The dead one comes back: it changes its own line, and not that the webhook is delivered.
    do(database, deliveries.record, lost, Outcome("late", 500), AT_ONCE)
    assert not pending(database, request_id)
    assert attempts(database, request_id)[0].error == "late"


def test_four_deliverers_send_each_once(
    database: Database, database_url: str, storage: Storage, receiver: Receiver
) -> None:
    ids = [cancel(database, f"{receiver.url}/{number}") for number in range(60)]
    send(database_url, storage, receiver, rounds=3, number=4)
    assert sorted(got.json["request_id"] for got in receiver.received) == sorted(ids)


def test_running_deliverers_get_every_webhook_through(
    database: Database, database_url: str, storage: Storage
) -> None:
    """A third of the answers are failures; nothing is lost, and nothing is sent after a 200."""
    with receiving(*[status(500), status(200), status(200)] * 40) as receiver:
        ids = {cancel(database, receiver.url) for _ in range(30)}

        async def work(deliverers: Sequence[Deliverer]) -> None:
            tasks = [asyncio.create_task(deliverer.run()) for deliverer in deliverers]
            deadline = time.monotonic() + 60
            while do(database, deliveries.num_due) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        with_deliverers(database_url, storage, policy(receiver), work, number=2)
        assert do(database, deliveries.num_due) == 0
        assert {got.json["request_id"] for got in receiver.received} == ids
    for request_id in ids:
        statuses = [attempt.status for attempt in attempts(database, request_id)]
        assert statuses[-1] == 200
        assert set(statuses[:-1]) <= {500}


def test_a_receiver_that_hangs_holds_up_no_other(
    database: Database, database_url: str, storage: Storage
) -> None:
    with receiving(faults.hang) as dead, receiving() as living:
        for _ in range(3 * AT_ONCE_PER_RECEIVER):
            cancel(database, dead.url)
        ids = {cancel(database, living.url) for _ in range(20)}

        async def work(deliverers: Sequence[Deliverer]) -> None:
            task = asyncio.create_task(deliverers[0].run())
            await asyncio.to_thread(living.wait_for, len(ids))
            assert len(dead.received) <= 2 * AT_ONCE_PER_RECEIVER
            dead.closing.set()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        with_deliverers(database_url, storage, policy(dead, living), work)
        assert {got.json["request_id"] for got in living.received} == ids


def test_stopping_does_not_wait_for_a_receiver_that_hangs(
    database: Database, database_url: str, storage: Storage
) -> None:
    with receiving(faults.hang) as receiver:
        request_id = cancel(database, receiver.url)

        async def work(deliverers: Sequence[Deliverer]) -> None:
            task = asyncio.create_task(deliverers[0].run())
            await asyncio.to_thread(receiver.wait_for, 1)
            task.cancel()
            await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 10)

        with_deliverers(database_url, storage, policy(receiver), work, grace_s=0.1)
    assert pending(database, request_id)


def test_a_database_that_is_away_stops_no_deliverer(
    database: Database,
    database_url: str,
    storage: Storage,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request_id = cancel(database, receiver.url)

    def rename(old: str, new: str) -> None:
        with database.write() as session:
            session.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    async def work(deliverers: Sequence[Deliverer]) -> None:
        rename("webhook_attempts", "away")
        task = asyncio.create_task(deliverers[0].run())
        try:
            async with asyncio.timeout(60):
                while not logged.calls:
                    await asyncio.sleep(0.01)
        finally:
            rename("away", "webhook_attempts")
        await asyncio.to_thread(receiver.wait_for, 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert logged.calls[0].args == ("webhooks.failed",)

    # Not `capture_logs`: a gateway made by an earlier test decides which levels it sees.
    logged = CapturingLogger()
    monkeypatch.setattr(deliverer, "log", logged)
    with_deliverers(database_url, storage, policy(receiver), work)
    assert receiver.received[0].json["request_id"] == request_id
