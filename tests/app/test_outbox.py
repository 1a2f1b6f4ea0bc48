"""Wake-ups: sent after the commit, again when lost, never in a request's way."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.db.engine import AsyncDatabase, Database
from app.db.models import Stage
from app.requests import lifecycle, outbox, reaper, repository
from app.requests.background import Publisher, Reaper
from tests.app.conftest import LOW, MODE, OWNER, put, row, submit
from tests.app.test_lifecycle import claimed, do, expire


class Broker:
    """The queue names it took; refuses while ``down``."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.down = False

    def __call__(self, queue: str) -> None:
        if self.down:
            raise ConnectionRefusedError("the broker is away")
        self.sent.append(queue)


def test_one_wake_up_per_stage(database: Database) -> None:
    broker = Broker()
    submit(database)
    assert [outbox.publish_pending(database, broker) for _ in range(3)] == [1, 0, 0]
    do(database, lifecycle.advance, claimed(database), {})
    assert outbox.publish_pending(database, broker) == 1
    assert broker.sent == ["cpu", "gpu"]


def test_tasks_cover_the_queues() -> None:
    assert set(outbox.TASKS) == set(outbox.QUEUES.values())
    assert set(outbox.QUEUES) == set(Stage)


def test_running_and_completed_requests_wake_nobody(database: Database) -> None:
    submit(database)
    claimed(database)
    do(database, lifecycle.request_cancel, submit(database), OWNER)
    assert outbox.publish_pending(database, Broker()) == 0


@pytest.mark.parametrize("how", ["released", "retried", "lost"])
def test_what_is_queued_again_wakes_again(database: Database, how: str) -> None:
    broker = Broker()
    submit(database)
    outbox.publish_pending(database, broker)
    held = claimed(database)
    if how == "lost":
        expire(database, held)
        do(database, reaper.reap)
    elif how == "released":
        do(database, lifecycle.release, held, "stopping")
    else:
        failure: dict[str, Any] = {"status": 500, "body": {}, "error": "x", "error_type": "y"}
        do(database, lifecycle.fail, held, **failure, retryable=True)
    assert outbox.publish_pending(database, broker) == 1


def test_a_dead_broker_keeps_them_due(database: Database) -> None:
    broker = Broker()
    broker.down = True
    request_id = submit(database)
    assert outbox.publish_pending(database, broker) == 0
    assert row(database, request_id).woken_at is None
    broker.down = False
    assert outbox.publish_pending(database, broker) == 1


def test_what_moved_on_while_it_was_sent_is_not_marked(database: Database) -> None:
    request_id = submit(database)

    def prepare_at_once(queue: str) -> None:
        if queue == "cpu":
            do(database, lifecycle.advance, claimed(database), {})

    assert outbox.publish_pending(database, prepare_at_once) == 1
    assert row(database, request_id).woken_at is None
    broker = Broker()
    outbox.publish_pending(database, broker)
    assert broker.sent == ["gpu"]


@pytest.mark.parametrize(
    ("wakes", "gap_s"), [(1, 30), (2, 60), (3, 120), (4, 240), (5, 480), (6, 600), (50, 600)]
)
def test_repetitions_have_growing_gaps(database: Database, wakes: int, gap_s: float) -> None:
    broker = Broker()
    request_id = submit(database)
    outbox.publish_pending(database, broker)
    now = row(database, request_id).woken_at or 0
    put(database, request_id, wakes=wakes, woken_at=now - gap_s + 20)
    assert outbox.publish_pending(database, broker) == 0
    put(database, request_id, wakes=wakes, woken_at=now - gap_s - 1)
    assert outbox.publish_pending(database, broker) == 1
    assert row(database, request_id).wakes == wakes + 1


def test_only_the_head_of_a_queue_is_repeated(database: Database) -> None:
    ids = [submit(database, **LOW), *(submit(database) for _ in range(outbox.REPEAT_HEAD))]
    outbox.publish_pending(database, Broker())
    for request_id in ids:
        put(database, request_id, woken_at=0.0)
    outbox.publish_pending(database, Broker())
    late = [request_id for request_id in ids if row(database, request_id).woken_at == 0.0]
    assert late == [ids[0]], "the low one is last in its queue"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


def in_loop(path: Path, story: Callable[[AsyncDatabase], Any]) -> None:
    async def run() -> None:
        database = AsyncDatabase(f"sqlite:///{path}")
        try:
            await story(database)
        finally:
            await database.close()

    asyncio.run(run())


def new() -> repository.NewRequest:
    return repository.NewRequest(owner=OWNER, input={}, **MODE)


def test_publisher_survives_an_outage(
    migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "copy.db"
    path.write_bytes(migrated_sqlite.read_bytes())
    monkeypatch.setattr("app.requests.background.RETRY_S", 0.05)

    async def story(database: AsyncDatabase) -> None:
        broker = Broker()
        publisher = Publisher(database, broker)
        task = asyncio.create_task(publisher.run())
        await database.write(repository.add, new())
        publisher.notify()
        await until(lambda: broker.sent == ["cpu"])
        broker.down = True
        await database.write(repository.add, new())
        publisher.notify()
        await asyncio.sleep(0.2)
        assert not task.done()
        broker.down = False
        await until(lambda: broker.sent == ["cpu", "cpu"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    in_loop(path, story)


def test_reaper_task_reaps_and_notifies(migrated_sqlite: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.db"
    path.write_bytes(migrated_sqlite.read_bytes())

    async def story(database: AsyncDatabase) -> None:
        added = await database.write(repository.add, new())
        held = await database.write(lifecycle.claim, Stage.PREPARE, "w", -1.0)
        assert held is not None
        assert held.request_id == added.id
        notified: list[bool] = []
        task_reaper = Reaper(
            database, lambda: notified.append(True), interval_s=0.05, attempts_limit=3
        )
        task = asyncio.create_task(task_reaper.run())
        await until(lambda: notified == [True])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    in_loop(path, story)
