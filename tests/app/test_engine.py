"""Transactions of the gateway: alone, and several in one commit."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.orm import Session

from app.db.engine import WRITES_PER_COMMIT, AsyncDatabase, Database
from app.db.models import ApiKey


class Refused(Exception):
    """A function's own answer."""


def add(session: Session, name: str) -> str:
    session.add(ApiKey(id=name, digest=name, name=name))
    session.flush()
    return name


def add_and_refuse(session: Session, name: str) -> None:
    add(session, name)
    raise Refused(name)


def names(session: Session) -> set[str]:
    return set(session.scalars(select(ApiKey.id)))


@pytest.fixture
def story(database_url: str, database: Database) -> Callable[[Callable[[AsyncDatabase], Any]], Any]:
    def told(story: Callable[[AsyncDatabase], Any]) -> Any:
        async def whole() -> Any:
            asynchronous = AsyncDatabase(database_url)
            try:
                return await story(asynchronous)
            finally:
                await asynchronous.close()

        return asyncio.run(whole())

    return told


def commits(database: AsyncDatabase) -> list[int]:
    """Grows with every commit of ``database``."""

    seen: list[int] = []
    event.listen(database._database.engine, "commit", lambda connection: seen.append(1))
    return seen


def test_writes_that_wait_are_committed_together(story: Any, database: Database) -> None:
    async def many(asynchronous: AsyncDatabase) -> int:
        seen = commits(asynchronous)
        asked = [f"{number:03}" for number in range(200)]
        answers = await asyncio.gather(*(asynchronous.write(add, name) for name in asked))
        assert answers == asked
        return len(seen)

    assert story(many) <= 200 // WRITES_PER_COMMIT + 2
    with database.read() as session:
        assert len(names(session)) == 200


def test_one_that_fails_takes_nothing_of_the_others_with_it(story: Any, database: Database) -> None:
    async def mixed(asynchronous: AsyncDatabase) -> list[Any]:
        return await asyncio.gather(
            asynchronous.write(add, "a"),
            asynchronous.write(add_and_refuse, "b"),
            asynchronous.write(add, "c"),
            return_exceptions=True,
        )

    first, second, third = story(mixed)
    assert (first, third) == ("a", "c")
    assert isinstance(second, Refused)
    with database.read() as session:
        assert names(session) == {"a", "c"}


def test_an_error_of_the_database_is_its_own_caller_s(story: Any, database: Database) -> None:
    """The whole batch is rolled back, and each of it is done again alone."""

    async def mixed(asynchronous: AsyncDatabase) -> list[Any]:
        return await asyncio.gather(
            asynchronous.write(add, "a"),
            asynchronous.write(add, "a"),
            asynchronous.write(lambda session: session.execute(text("SELECT nonsense"))),
            asynchronous.write(add, "c"),
            return_exceptions=True,
        )

    first, second, third, fourth = story(mixed)
    assert (first, fourth) == ("a", "c")
    assert type(second).__name__ == "IntegrityError"
    assert isinstance(third, Exception)
    with database.read() as session:
        assert names(session) == {"a", "c"}


def test_who_left_before_its_turn_is_not_served(story: Any, database: Database) -> None:
    async def leave(asynchronous: AsyncDatabase) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def hold(session: Session) -> None:
            begun.set()
            go_on.wait(10)

        holding = asyncio.create_task(asynchronous.write(hold))
        await asyncio.to_thread(begun.wait, 10)
        leaving = asyncio.create_task(asynchronous.write(add, "left"))
        staying = asyncio.create_task(asynchronous.write(add, "stayed"))
        await asyncio.sleep(0)
        leaving.cancel()
        go_on.set()
        await asyncio.gather(holding, staying)

    story(leave)
    with database.read() as session:
        assert names(session) == {"stayed"}


def test_reading_does_not_wait_for_a_write(story: Any) -> None:
    async def both(asynchronous: AsyncDatabase) -> set[str]:
        begun, go_on = threading.Event(), threading.Event()

        def hold(session: Session) -> None:
            add(session, "unseen")
            begun.set()
            go_on.wait(10)

        holding = asyncio.create_task(asynchronous.write(hold))
        await asyncio.to_thread(begun.wait, 10)
        seen = await asynchronous.read(names)
        go_on.set()
        await holding
        return seen

    assert story(both) == set()
