"""Owners take turns: nobody waits for the whole of another one's queue (R19)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, insert, text

from app.db.engine import Database
from app.db.models import Request, Stage
from app.requests import lifecycle, polls, repository, turns
from app.requests.lengths import QueueLengths
from tests.app.conftest import LOW, MODE, Gateway, emptied, row, submit
from tests.app.keys.conftest import Key, make_key
from tests.app.keys.test_limits import BODY
from tests.app.test_lifecycle import claimed, do


def served(database: Database, num: int, stage: Stage = Stage.PREPARE) -> str:
    """The owners of the next ``num`` claims."""
    return "".join(claimed(database, stage).owner for _ in range(num))


def test_a_flood_delays_others_by_one(database: Database) -> None:
    for _ in range(20):
        submit(database, "a")
    assert served(database, 2) == "aa"
    late = row(database, submit(database, "b"))
    with database.read() as session:
        assert repository.position(session, late) == 0
    submit(database, "b")
    submit(database, "c")
    assert served(database, 6) == "bcabaa"


def test_a_submit_is_told_its_turn(gateway: Gateway) -> None:
    """Also who has nothing waiting, but was served the last."""
    keys = [make_key(gateway.database) for _ in range(2)]

    def ask(key: Key) -> int:
        reply = gateway.client.post("/t2v", json=BODY, headers=key.header)
        return int(reply.json()["queue_position"])

    first, second = keys
    for key in keys:
        ask(key)
        assert claimed(gateway.database).owner == key.id
    assert [ask(key) for key in (first, second, second, first)] == [0, 1, 2, 2]
    found = [claimed(gateway.database).owner for _ in range(2)]
    assert found == [first.id, second.id]
    # The first one was served before the second, so it is next, with the one it has.
    assert ask(second) == 2
    assert ask(first) == 2


def test_each_owner_keeps_its_own_order(database: Database) -> None:
    ids = [submit(database, owner) for owner in "aabbab"]
    found = [claimed(database).request_id for _ in ids]
    assert found == [ids[number] for number in (0, 2, 1, 3, 4, 5)]


def test_normal_comes_before_low_whoever_sent_it(database: Database) -> None:
    submit(database, "b", **LOW)
    for _ in range(2):
        submit(database, "a")
        submit(database, "a", **LOW)
    assert served(database, 5) == "aabaa"


def test_stages_have_turns_of_their_own(database: Database) -> None:
    """All of a flood may be prepared before the first of another owner comes: it still waits for
    one training only."""
    for _ in range(5):
        submit(database, "a")
    for _ in range(5):
        do(database, lifecycle.advance, claimed(database), {})
    assert served(database, 1, Stage.TRAIN) == "a"
    submit(database, "b")
    do(database, lifecycle.advance, claimed(database), {})
    assert served(database, 3, Stage.TRAIN) == "baa"


def test_who_was_passed_over_has_one_turn_and_no_more(database: Database) -> None:
    """What it could not run meanwhile is not owed to it."""
    limited = make_key(database, max_running=1).id
    for _ in range(4):
        submit(database, limited)
    held = claimed(database)
    for _ in range(6):
        submit(database, "b")
    assert served(database, 3) == "bbb"
    with database.write() as session:
        lifecycle.complete(session, held, {}, 0, 1.0)
        # It may run what it wants from now on.
        session.execute(text("UPDATE api_keys SET max_running = NULL"))
    assert [claimed(database).owner == limited for _ in range(4)] == [True, False, True, False]


def test_what_comes_back_is_first_of_its_owner(database: Database) -> None:
    first = submit(database, "a")
    submit(database, "a")
    submit(database, "b")
    do(database, lifecycle.release, claimed(database), "shutdown")
    assert served(database, 1) == "b"
    assert claimed(database).request_id == first


def test_a_claim_waits_for_no_other(migrated_postgres: str) -> None:
    """One that is not committed, by a worker that froze in it, holds up nobody."""
    database = Database(emptied(migrated_postgres))
    served_before = [submit(database, owner) for owner in "ab"]
    assert [claimed(database).request_id for _ in served_before] == served_before
    ids = [submit(database, owner) for owner in "aab"]
    with ThreadPoolExecutor() as others, database.write() as session:
        frozen = lifecycle.claim(session, Stage.PREPARE, "frozen")
        assert frozen is not None
        assert frozen.request_id == ids[0]
        meanwhile = [others.submit(claimed, database).result(timeout=30) for _ in range(2)]
        assert {held.request_id for held in meanwhile} == set(ids[1:])
    database.close()


class TestPlans:
    """What takes time is how many owners wait, not how many requests. (On SQLite: PostgreSQL reads
    a small table whole.)"""

    @pytest.fixture
    def sqlite(self, migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
        path = tmp_path / "many.db"
        path.write_bytes(migrated_sqlite.read_bytes())
        database = Database(f"sqlite:///{path}")
        with database.write() as session:
            session.execute(
                insert(Request),
                [
                    {
                        **{"id": f"{owner}{n}", "owner": owner, "input": {}, "storage_prefix": "x"},
                        **MODE,
                    }
                    for owner in "abc"
                    for n in range(2000)
                ],
            )
        yield database
        database.close()

    @contextmanager
    def explained(self, database: Database) -> Iterator[list[str]]:
        """The plans of the statements of the block."""
        statements: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            statements.append((statement, parameters))

        engine = database.engine
        event.listen(engine, "before_cursor_execute", note)
        plans: list[str] = []
        try:
            yield plans
        finally:
            event.remove(engine, "before_cursor_execute", note)
        with engine.connect() as connection:
            for statement, parameters in statements:
                if statement.startswith(("SELECT", "WITH", "UPDATE")):
                    explain = f"EXPLAIN QUERY PLAN {statement}"
                    rows = connection.exec_driver_sql(explain, parameters).all()
                    plans += [line[-1] for line in rows]

    def test_a_claim(self, sqlite: Database) -> None:
        with self.explained(sqlite) as plans:
            claimed(sqlite)
        by_turns = [line.rpartition("ix_requests_turns ")[2] for line in plans if "turns (" in line]
        assert {"(state=? AND owner>?)", "(state=? AND owner=? AND stage=?)"} <= set(by_turns)
        assert not [line for line in plans if line.startswith("SCAN requests")]

    def test_a_poll(self, sqlite: Database) -> None:
        with self.explained(sqlite) as plans, sqlite.read() as session:
            polls.poll(session, ["a5", "b1999"], QueueLengths())
        counted = "COVERING INDEX ix_requests_turns (state=?"
        own = f"{counted} AND owner=? AND stage=? AND priority=? AND number<?)"
        assert [line for line in plans if own in line]
        assert [line for line in plans if line.endswith(f"{counted})")]
        assert not [line for line in plans if line.startswith("SCAN requests")]

    def test_positions_of_many(self, sqlite: Database) -> None:
        with sqlite.read() as session:
            found = polls.poll(session, ["a0", "b0", "c0", "a1", "c1999"], QueueLengths())
            assert [found[id].position for id in ("a0", "b0", "c0", "a1", "c1999")] == [
                *(0, 1, 2, 3, 5999)
            ]
            assert turns.waiting(session).position("d", 0, Stage.PREPARE) == 3
