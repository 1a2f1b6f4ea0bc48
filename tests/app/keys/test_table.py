"""Keys of the database at the door (`reliability.md` T1, T3, T4; C18)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from starlette.requests import Request

from app.auth import Authenticator, owner_of
from app.db.engine import AsyncDatabase, Database
from app.errors import Unavailable
from app.keys.store import digest_of
from app.keys.table import FRESH_S, KeyTable
from tests.app.conftest import Gateway, row
from tests.app.keys.conftest import make_key, revoke

BODY = {"training_data_url": "https://example.com/a.zip"}


class Clock:
    """Seconds, moved by hand; by a little whenever somebody looks."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1e-6
        return self.now


class Counted(AsyncDatabase):
    """Knows how often it was read."""

    reads = 0

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        self.reads += 1
        return await super().read(*args, **kwargs)


Story = Callable[[KeyTable, Counted, Clock], Awaitable[None]]


def tell(url: str, story: Story) -> None:
    async def run() -> None:
        database, clock = Counted(url), Clock()
        try:
            await story(KeyTable(database, clock=clock), database, clock)
        finally:
            await database.close()

    asyncio.run(run())


def test_a_known_key_costs_one_query_in_two_seconds(database: Database, database_url: str) -> None:
    key = make_key(database)

    async def story(table: KeyTable, counted: Counted, clock: Clock) -> None:
        for _ in range(100):
            assert await table.owner_of(digest_of(key.text)) == key.id
        clock.now = FRESH_S - 0.1
        assert await table.owner_of(digest_of(key.text)) == key.id
        assert counted.reads == 1
        clock.now = FRESH_S + 0.1
        assert await table.owner_of(digest_of(key.text)) == key.id
        assert counted.reads == 2

    tell(database_url, story)


def test_a_revoked_key_opens_no_longer_than_that(database: Database, database_url: str) -> None:
    key, other = make_key(database), make_key(database)

    async def story(table: KeyTable, counted: Counted, clock: Clock) -> None:
        assert await table.owner_of(digest_of(key.text)) == key.id
        revoke(database, key)
        clock.now = FRESH_S + 0.01
        assert await table.owner_of(digest_of(key.text)) is None
        assert await table.owner_of(digest_of(other.text)) == other.id

    tell(database_url, story)


def test_a_new_key_opens_at_once(database: Database, database_url: str) -> None:
    async def story(table: KeyTable, counted: Counted, clock: Clock) -> None:
        assert not await table.used()
        key = make_key(database)
        assert await table.owner_of(digest_of(key.text)) == key.id
        assert await table.used()

    tell(database_url, story)


def test_a_flood_of_wrong_keys_shares_queries(database: Database, database_url: str) -> None:
    key = make_key(database)

    async def story(table: KeyTable, counted: Counted, clock: Clock) -> None:
        wrong = [table.owner_of(digest_of(f"{key.text}{number}")) for number in range(500)]
        assert await asyncio.gather(*wrong) == [None] * 500
        # One for who came first, one for all who came while it was out.
        assert counted.reads <= 2

    tell(database_url, story)


def test_without_the_database_nobody_enters(database: Database, database_url: str) -> None:
    key = make_key(database)

    async def story(table: KeyTable, counted: Counted, clock: Clock) -> None:
        assert await table.owner_of(digest_of(key.text)) == key.id
        with database.write() as session:
            session.execute(text("ALTER TABLE api_keys RENAME TO away"))
        try:
            clock.now = FRESH_S + 0.01
            with pytest.raises(Unavailable):
                await table.owner_of(digest_of(key.text))
            with pytest.raises(Unavailable):
                await table.used()
        finally:
            with database.write() as session:
                session.execute(text("ALTER TABLE away RENAME TO api_keys"))
        assert await table.owner_of(digest_of(key.text)) == key.id

    tell(database_url, story)


def test_keys_are_read_by_digest_alone(gateway: Gateway) -> None:
    key = make_key(gateway.database)
    for scheme in ("Key", "Bearer"):
        reply = gateway.client.post(
            "/t2v", json=BODY, headers={"authorization": f"{scheme} {key.text}"}
        )
        assert row(gateway.database, reply.json()["request_id"]).owner == key.id
    id, _, secret = key.text.partition(":")
    digest = digest_of(key.text)
    for wrong in (id, secret, digest, f"{id}:{digest}", key.text[:-1], f"{key.text}x"):
        reply = gateway.client.post("/t2v", json=BODY, headers={"authorization": f"Key {wrong}"})
        assert reply.status_code == 401
        assert reply.json() == {
            "detail": "Invalid key credentials.",
            "error_type": "unauthorized",
        }


def asking(key: str) -> Request:
    """A request with this key."""
    headers = [(b"authorization", f"Key {key}".encode())]
    return Request({"type": "http", "headers": headers})


def test_keys_of_the_environment_work_beside_them(database: Database, database_url: str) -> None:
    key = make_key(database)

    async def story(table: KeyTable, counted: Counted, clock: Clock) -> None:
        door = Authenticator([SecretStr("id:secret")], table, public_url="http://a", host="::")
        for given, owner in ((key.text, key.id), ("id:secret", owner_of("id:secret"))):
            assert await door(asking(given)) == owner

    tell(database_url, story)


def test_while_the_database_is_away_the_answer_is_503(gateway: Gateway) -> None:
    """On the short way of status polls too."""
    with gateway.database.write() as session:
        session.execute(text("DROP TABLE api_keys"))
    for path in ("requests/00000000-0000-4000-8000-000000000000/status", "requests/x"):
        reply = gateway.client.get(f"/t2v/{path}")
        assert reply.status_code == 503
        assert reply.json()["error_type"] == "service_unavailable"
