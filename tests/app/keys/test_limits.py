"""Limits on requests: exact when several gateways or workers count at the same moment (R19)."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from app import modes
from app.db.engine import AsyncDatabase, Database
from app.db.models import Stage, State
from app.errors import QueueLimitReached
from app.keys import store
from app.modes.common import TrainerRequest
from app.requests import lifecycle, outbox, polls, reaper, repository, turns
from app.requests.lengths import QueueLengths
from app.requests.options import SubmitOptions
from app.requests.service import RequestService
from tests.app.asking import parsed
from tests.app.conftest import LOW, Gateway, put, row, submit
from tests.app.keys.conftest import Key, make_key
from tests.app.test_claim_processes import CLAIMER
from tests.app.test_lifecycle import claim, claimed, do, expire

BODY = {"training_data_url": "https://example.com/a.zip"}


class TestQueued:
    def test_one_more_is_refused_for_good(self, gateway: Gateway) -> None:
        """403 and no header that asks for another try: neither client repeats it."""
        key = make_key(gateway.database, max_queued=2)
        replies = [gateway.client.post("/t2v", json=BODY, headers=key.header) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 403]
        body = replies[2].json()
        assert body["error_type"] == replies[2].headers["x-fal-error-type"] == "queue_limit_reached"
        assert "2 wait, and 2 may" in body["detail"]
        assert "retry-after" not in replies[2].headers

    def test_a_place_is_free_once_one_runs_or_ends(self, gateway: Gateway) -> None:
        key = make_key(gateway.database, max_queued=1)

        def ask() -> int:
            return gateway.client.post("/t2v", json=BODY, headers=key.header).status_code

        assert (ask(), ask()) == (200, 403)
        claimed(gateway.database)
        assert (ask(), ask()) == (200, 403)

    def test_others_are_not_held_up(self, gateway: Gateway) -> None:
        full, other = make_key(gateway.database, max_queued=0), make_key(gateway.database)
        codes = [
            gateway.client.post("/t2v", json=BODY, headers=key.header).status_code
            for key in (full, other, full, other)
        ]
        assert codes == [403, 200, 403, 200]

    def test_the_rest_of_a_batch_is_taken(self, database: Database, database_url: str) -> None:
        """Submits that wait together share a transaction; the limit counts within it."""
        keys = [make_key(database, max_queued=3), make_key(database)]
        outcomes = asyncio.run(submit_at_once(database_url, [key for key in keys * 10]))
        for key, expected in zip(keys, (3, 10), strict=True):
            mine = [outcome for owner, outcome in outcomes if owner == key.id]
            assert sum(outcome is None for outcome in mine) == expected
            assert all(isinstance(one, QueueLimitReached) for one in mine if one is not None)
            with database.read() as session:
                assert store.usage(session)[key.id].queued == expected

    def test_gateways_that_submit_at_once_count_together(
        self, database: Database, database_url: str
    ) -> None:
        keys = [make_key(database, max_queued=5) for _ in range(2)]
        ready = threading.Barrier(4)

        def gateway(order: list[Key]) -> None:
            ready.wait(10)
            asyncio.run(submit_at_once(database_url, order * 10))

        threads = [
            # In different orders: they must not wait for each other.
            threading.Thread(target=gateway, args=(keys[:: 1 if number % 2 else -1],))
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with database.read() as session:
            used = store.usage(session)
        assert [used[key.id].queued for key in keys] == [5, 5]


async def submit_at_once(url: str, keys: list[Key]) -> list[tuple[str, Exception | None]]:
    """One submit for each of ``keys``, all begun before any ends: (owner, why not)."""
    database = AsyncDatabase(url)
    service = RequestService(
        database, "http://a", lambda: None, lambda url: None, lambda mode, request: None
    )
    request: TrainerRequest = parsed("t2v")

    async def one(key: Key) -> tuple[str, Exception | None]:
        try:
            await service.submit(modes.by_path("t2v"), key.id, request, SubmitOptions())
        except QueueLimitReached as error:
            return key.id, error
        return key.id, None

    try:
        return await asyncio.gather(*map(one, keys))
    finally:
        await database.close()


class TestPositions:
    """What is passed over comes before nobody but others of its key."""

    @pytest.fixture
    def asked(self, gateway: Gateway) -> list[dict[str, Any]]:
        """Submits of a key that runs all it may, another one, and the first again."""
        full, other = make_key(gateway.database, max_running=1), make_key(gateway.database)
        replies: list[dict[str, Any]] = []
        for key in (full, full, other, full, other):
            reply = gateway.client.post("/t2v", json=BODY, headers=key.header).json()
            replies.append({**reply, "header": key.header})
            if len(replies) == 1:
                claimed(gateway.database)
        return replies

    def test_as_submits_are_told(self, asked: list[dict[str, Any]]) -> None:
        assert [reply["queue_position"] for reply in asked] == [0, 0, 0, 2, 1]

    @pytest.mark.parametrize("query", ["", "?logs=1"])
    def test_as_polls_are_told(
        self, gateway: Gateway, asked: list[dict[str, Any]], query: str
    ) -> None:
        found = [
            gateway.client.get(reply["status_url"] + query, headers=reply["header"]).json()
            for reply in asked
        ]
        assert [one.get("queue_position") for one in found] == [None, 1, 0, 3, 1]

    def test_on_both_databases(self, database: Database) -> None:
        full = make_key(database, max_running=1)
        submit(database, owner=full.id)
        claimed(database)
        ids = [
            submit(database, owner=owner, **more)
            for owner, more in ((full.id, {}), ("other", {}), (full.id, LOW), ("other", LOW))
        ]
        with database.read() as session:
            found = {row.id: position for row, position, *_ in repository.watched(session, ids)}
            polled = polls.poll(session, ids, QueueLengths())
            waiting = turns.waiting(session)
        assert [found[id] for id in ids] == [1, 0, 3, 1]
        assert [polled[id].position for id in ids] == [1, 0, 3, 1]
        next_ones = [(full.id, 0), ("other", 0), (full.id, 1), ("other", 1)]
        assert [waiting.position(*one, Stage.PREPARE) for one in next_ones] == [2, 1, 4, 2]

    def test_they_count_again_once_they_may_run(self, database: Database) -> None:
        full = make_key(database, max_running=1)
        submit(database, owner=full.id)
        held = claimed(database)
        submit(database, owner=full.id)
        submit(database, owner="other")
        later = row(database, submit(database, owner="other"))
        with database.read() as session:
            assert repository.position(session, later) == 1
        do(database, lifecycle.complete, held, {}, 0, 1.0)
        with database.read() as session:
            assert repository.position(session, later) == 2


class TestRunning:
    def test_others_go_first_and_then_it_goes_on(self, database: Database) -> None:
        key = make_key(database, max_running=1)
        first, second = (submit(database, owner=key.id) for _ in range(2))
        later = submit(database, owner="other", **LOW)
        held = claimed(database)
        assert held.request_id == first
        assert claimed(database).request_id == later
        assert claim(database) is None
        do(database, lifecycle.complete, held, {}, 0, 1.0)
        assert claimed(database).request_id == second

    def test_both_stages_count(self, database: Database) -> None:
        key = make_key(database, max_running=1)
        for _ in range(2):
            submit(database, owner=key.id)
        do(database, lifecycle.advance, claimed(database), {})
        held = claimed(database)
        assert claim(database, Stage.TRAIN) is None
        do(database, lifecycle.advance, held, {})
        assert claim(database, Stage.TRAIN) is not None

    def test_zero_pauses(self, database: Database) -> None:
        key = make_key(database, max_running=0)
        submit(database, owner=key.id)
        assert claim(database) is None
        do(database, store.set_limits, key.id, max_running=None)
        assert claim(database) is not None

    @pytest.mark.parametrize("limit", [1, 3])
    def test_workers_that_claim_at_once_count_together(
        self, database: Database, database_url: str, limit: int
    ) -> None:
        key = make_key(database, max_running=limit)
        others = {submit(database, owner="other") for _ in range(6)}
        mine = {submit(database, owner=key.id) for _ in range(30)}
        got: list[str] = []
        ready = threading.Barrier(6)

        def worker() -> None:
            own = Database(database_url)
            ready.wait(10)
            for _ in range(10):
                with own.write() as session:
                    found = lifecycle.claim(session, Stage.PREPARE, "w")
                if found is not None:
                    got.append(found.request_id)
            own.close()

        threads = [threading.Thread(target=worker) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == len(set(got))
        assert others <= set(got)
        assert len(mine & set(got)) == limit

    def test_processes_too(self, database: Database, database_url: str) -> None:
        key = make_key(database, max_running=2)
        for _ in range(10):
            submit(database, owner=key.id)
        claimers = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIMER, database_url, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for name in ("a", "b")
        ]
        outputs = [claimer.communicate("go\n", timeout=60)[0] for claimer in claimers]
        assert [claimer.returncode for claimer in claimers] == [0, 0]
        assert len("".join(outputs).split()) == 2


def wakes(database: Database) -> list[str]:
    """Queues that are told of work now."""
    sent: list[str] = []
    outbox.publish_pending(database, sent.append)
    return sent


def complete(database: Database, held: lifecycle.Claim) -> None:
    do(database, lifecycle.complete, held, {}, 0, 1.0)


def release(database: Database, held: lifecycle.Claim) -> None:
    do(database, lifecycle.release, held, "stopping")


def lose(database: Database, held: lifecycle.Claim) -> None:
    expire(database, held)
    put(database, held.request_id, no_retry=True)
    do(database, reaper.reap)


class TestWakeUps:
    """A wake-up that found its owner at the limit is gone; the end of a run makes another."""

    @pytest.mark.parametrize("end", [complete, release, lose])
    def test_the_end_of_a_run_wakes_the_next(
        self, database: Database, end: Callable[[Database, lifecycle.Claim], None]
    ) -> None:
        key = make_key(database, max_running=1)
        _, second, third = (submit(database, owner=key.id) for _ in range(3))
        stranger = submit(database, owner="other")
        assert wakes(database) == ["cpu"] * 4
        held = claimed(database)
        assert claimed(database).request_id == stranger
        assert claim(database) is None
        assert wakes(database) == []
        end(database, held)
        assert row(database, second).woken_at is None
        assert row(database, third).woken_at is not None
        assert set(wakes(database)) == {"cpu"}

    def test_in_either_stage(self, database: Database) -> None:
        key = make_key(database, max_running=1)
        first, _ = (submit(database, owner=key.id) for _ in range(2))
        do(database, lifecycle.advance, claimed(database), {})
        third = submit(database, owner=key.id)
        wakes(database)
        held = claimed(database)
        assert claim(database, Stage.TRAIN) is None
        complete(database, held)
        assert sorted(wakes(database)) == ["cpu", "gpu"]
        assert row(database, first).stage == Stage.TRAIN
        assert row(database, third).stage == Stage.PREPARE

    def test_a_raised_limit_wakes_all(self, database: Database) -> None:
        key = make_key(database, max_running=0)
        for _ in range(3):
            submit(database, owner=key.id)
        assert wakes(database) == ["cpu"] * 3
        assert wakes(database) == []
        do(database, store.set_limits, key.id, max_running=2)
        assert wakes(database) == ["cpu"] * 3

    def test_without_a_limit_nothing_is_sent_again(self, database: Database) -> None:
        key = make_key(database, max_queued=9)
        for _ in range(3):
            submit(database, owner=key.id)
        wakes(database)
        complete(database, claimed(database))
        assert wakes(database) == []


def test_what_a_revoked_key_submitted_goes_on(database: Database) -> None:
    key = make_key(database, max_running=1)
    first, second = (submit(database, owner=key.id) for _ in range(2))
    held = claimed(database)
    do(database, store.revoke, key.id)
    complete(database, held)
    assert row(database, first).state == State.COMPLETED
    assert claimed(database).request_id == second
