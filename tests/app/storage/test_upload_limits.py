"""Whose uploads are, what they count for, and what becomes of the room of those that fail."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import select
from starlette.requests import Request

from app import replies
from app.auth import Authenticator
from app.db.engine import AsyncDatabase, Database
from app.db.models import Upload
from app.errors import BadRequest, StorageLimitReached
from app.keys import store as keys
from app.settings import Settings
from app.storage import ledger, make_signer, receiving
from app.storage.endpoints import router_for
from app.storage.local import LocalStorage
from app.storage.receiving import MIN_RATE_BYTES_S, STAGING, STALL_S, Receiver
from tests.app.keys.conftest import Key, make_key, revoke
from tests.app.storage.conftest import EXPIRY_S, PUBLIC_URL, Clock
from tests.app.storage.test_endpoints import Client

LIMIT = 1000
MAX_BYTES = 5000


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        database_url=database_url,
        public_url=PUBLIC_URL,
        max_archive_bytes=MAX_BYTES,
        url_expiry_s=EXPIRY_S,
    )


@pytest.fixture
def store(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.data_dir / "storage", make_signer(settings), url_expiry_s=EXPIRY_S)


@pytest.fixture
def app(settings: Settings, store: LocalStorage) -> Iterator[tuple[FastAPI, asyncio.Runner]]:
    app = FastAPI(redirect_slashes=False)
    replies.install(app)
    database = AsyncDatabase(settings.database_url)
    owner = Authenticator.of(settings, database)
    app.include_router(router_for(store, settings, owner, database))
    with asyncio.Runner() as runner:
        yield app, runner
        runner.run(database.close())


@pytest.fixture
def key(database: Database) -> Key:
    return make_key(database, max_storage_bytes=LIMIT)


@pytest.fixture
def http(app: tuple[FastAPI, asyncio.Runner]) -> Client:
    return Client(*app)


def uploads(database: Database) -> dict[str, Upload]:
    with database.read() as session:
        return {row.key: row for row in session.scalars(select(Upload))}


def used(database: Database, owner: str) -> int:
    with database.read() as session:
        return keys.usage(session).get(owner, keys.Usage()).storage_bytes


def chunked(size: int) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size // 100):
            yield b"x" * 100

    return pieces()


def initiate(http: Client, key: Key, path: str = "initiate") -> dict[str, str]:
    found: dict[str, str] = http(
        "POST", f"/storage/upload/{path}", key=key.text, json={"file_name": "a.zip"}
    ).json()
    return found


def put(http: Client, key: Key, content: Any) -> httpx.Response:
    """As JavaScript and the fallback of Python do."""
    return http("PUT", initiate(http, key)["upload_url"], key=None, content=content)


def post(http: Client, key: Key, content: Any) -> httpx.Response:
    """As Python does."""
    return http("POST", "/files/upload", key=key.text, content=content)


def in_parts(http: Client, key: Key, content: Any) -> httpx.Response:
    """The first part of a larger file."""
    url = initiate(http, key, "initiate-multipart")["upload_url"]
    return http("PUT", f"{url}/1", key=None, content=content)


every_way = pytest.mark.parametrize("send", [put, post, in_parts])
Send = Callable[[Client, Key, Any], httpx.Response]
declared_or_not = pytest.mark.parametrize(
    "body", [lambda size: b"x" * size, chunked], ids=["declared", "chunked"]
)
Body = Callable[[int], Any]


@every_way
@declared_or_not
def test_what_fits_is_taken_and_counted(
    http: Client, database: Database, key: Key, send: Send, body: Body
) -> None:
    assert send(http, key, body(600)).status_code == 200
    assert used(database, key.id) == 600
    assert send(http, key, body(400)).status_code == 200
    assert used(database, key.id) == LIMIT


@every_way
@declared_or_not
def test_what_does_not_fit_is_refused_and_costs_nothing(
    http: Client, database: Database, settings: Settings, key: Key, send: Send, body: Body
) -> None:
    send(http, key, body(600))
    reply = send(http, key, body(500))
    assert reply.status_code == 413
    assert reply.json()["error_type"] == "storage_limit_reached"
    assert "1.0 kB that this key may store 400 B are left" in reply.json()["detail"]
    assert used(database, key.id) == 600
    assert send(http, key, body(400)).status_code == 200
    assert list((settings.data_dir / "staging").iterdir()) == []
    assert not [row for row in uploads(database) if row.startswith("receiving/")]


@every_way
def test_a_declared_size_is_refused_before_a_byte_is_read(
    http: Client, key: Key, send: Send
) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    def declared(method: str, url: str, **options: Any) -> httpx.Response:
        if "content" in options:
            options["headers"] = {"content-length": str(LIMIT + 1)}
        return http(method, url, **options)

    assert send(declared, key, body()).status_code == 413  # type: ignore[arg-type]


def test_another_keys_uploads_do_not_count(http: Client, database: Database, key: Key) -> None:
    other, unlimited = make_key(database, max_storage_bytes=LIMIT), make_key(database)
    for owner in (key, other, unlimited, unlimited):
        assert post(http, owner, b"x" * LIMIT).status_code == 200
    assert [used(database, owner.id) for owner in (key, other, unlimited)] == [1000, 1000, 2000]


def test_a_whole_file_says_so(http: Client, database: Database, key: Key) -> None:
    """What retention goes by."""
    put(http, key, b"x" * 10)
    initiate(http, key)
    begun, stored = sorted(uploads(database).values(), key=lambda row: row.size_bytes)
    assert (stored.owner, stored.size_bytes, begun.size_bytes) == (key.id, 10, 0)
    assert stored.stored_at is not None
    assert 0 <= stored.stored_at - stored.created_at < 60
    assert begun.stored_at is None


def test_parts_become_one_file(
    http: Client, database: Database, store: LocalStorage, key: Key
) -> None:
    """They count once, and joining them needs no room of its own."""
    urls = initiate(http, key, "initiate-multipart")
    sent = [
        http("PUT", f"{urls['upload_url']}/{n}", key=None, content=b"x" * 450).json()
        for n in (1, 2)
    ]
    assert used(database, key.id) == 900
    assert {row.stored_at for row in uploads(database).values()} == {None}
    for _ in range(2):
        done = http("POST", f"{urls['upload_url']}/complete", key=None, json={"parts": sent})
        assert done.status_code == 200
        (row,) = uploads(database).values()
        assert (row.key, row.owner) == (store.key_of_own_url(urls["file_url"]), key.id)
        assert row.size_bytes == used(database, key.id) == 900
        assert row.stored_at is not None


def test_a_part_sent_again_counts_once(http: Client, database: Database, key: Key) -> None:
    url = initiate(http, key, "initiate-multipart")["upload_url"]
    for _ in range(3):
        assert http("PUT", f"{url}/1", key=None, content=b"x" * 300).status_code == 200
    assert used(database, key.id) == 300


def test_every_row_of_a_stored_file_is_a_file(
    http: Client, database: Database, store: LocalStorage, key: Key
) -> None:
    for send in (put, post, in_parts):
        send(http, key, b"x" * 100)
    stored = {*store.list_keys("uploads"), *store.list_keys("parts")}
    assert {name for name, row in uploads(database).items() if row.size_bytes} == stored


@every_way
def test_a_client_that_goes_away_leaves_its_room(
    app: tuple[FastAPI, asyncio.Runner], database: Database, http: Client, key: Key, send: Send
) -> None:
    """While it sends, the room is taken; when it is gone, it is free."""
    seen: list[int] = []

    def half(method: str, url: str, **options: Any) -> httpx.Response:
        if "content" not in options:
            return http(method, url, **options)
        messages = [{"type": "http.request", "body": b"x" * 100, "more_body": True}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            seen.append(used(database, key.id))
            return {"type": "http.disconnect"}

        answer: dict[str, Any] = {}

        async def reply(message: Any) -> None:
            answer.update(message)

        path = urlsplit(url).path
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [
                (b"content-length", b"700"),
                (b"authorization", f"Key {key.text}".encode()),
            ],
        }
        app[1].run(app[0](scope, receive, reply))
        return httpx.Response(answer.get("status", 0) or 499)

    assert send(half, key, b"").status_code == 499  # type: ignore[arg-type]
    assert seen == [700]
    assert used(database, key.id) == 0


LONG_S = STALL_S + 1
LEAST = int(LONG_S * MIN_RATE_BYTES_S)
"""Bytes of a body that takes so long."""


@pytest.mark.parametrize(
    ("pieces", "taken"),
    [
        pytest.param([(STALL_S, 1)], True, id="slow at first"),
        pytest.param([(LONG_S, LEAST)], True, id="just fast enough"),
        pytest.param([(LONG_S, LEAST - 1)], False, id="too slow"),
        pytest.param([(0.0, LEAST), (LONG_S, 1)], True, id="on average"),
        pytest.param([(0.0, LEAST), (LONG_S, 1), (1.0, 1)], False, id="on average no more"),
    ],
)
def test_a_body_that_trickles(
    database: Database,
    settings: Settings,
    store: LocalStorage,
    clock: Clock,
    pieces: list[tuple[float, int]],
    taken: bool,
) -> None:
    """Each piece is some bytes after some seconds."""
    owner = make_key(database).id
    coming = iter(pieces)

    async def receive() -> dict[str, Any]:
        seconds, size = next(coming, (0.0, 0))
        clock.now += seconds
        return {"type": "http.request", "body": b"x" * size, "more_body": size > 0}

    async def send() -> None:
        asynchronous = AsyncDatabase(settings.database_url)
        try:
            receiver = Receiver(store, asynchronous, settings.data_dir / STAGING, now=clock)
            request = Request({"type": "http", "headers": []}, receive)
            await receiver.store_file(request, "uploads/a", owner, None, 10**6)
        finally:
            await asynchronous.close()

    if taken:
        asyncio.run(send())
    else:
        with pytest.raises(BadRequest, match="slower than 1024 bytes per second") as refused:
            asyncio.run(send())
        assert refused.value.status == 400
    assert store.list_keys("uploads") == ["uploads/a"] * taken
    assert used(database, owner) == sum(size for _, size in pieces) * taken
    assert list((settings.data_dir / STAGING).iterdir()) == []


@pytest.mark.parametrize("begun", ["initiate", "initiate-multipart"])
def test_a_revoked_key_ends_its_uploads(
    http: Client, database: Database, key: Key, begun: str
) -> None:
    url = initiate(http, key, begun)["upload_url"] + ("/1" if "multipart" in begun else "")
    revoke(database, key)
    assert http("PUT", url, key=None, content=b"x").status_code == 403
    assert used(database, key.id) == 0


def test_a_revoked_key_ends_its_tokens(http: Client, database: Database, key: Key) -> None:
    token = http("POST", "/storage/auth/token", key=key.text, json={}).json()["token"]
    headers = {"authorization": f"Bearer {token}"}

    def upload() -> int:
        return http("POST", "/files/upload", key=None, content=b"x", headers=headers).status_code

    assert upload() == 200
    revoke(database, key)
    assert upload() == 403


def test_another_key_reads_what_it_was_given_and_no_more(
    http: Client, database: Database, store: LocalStorage, key: Key
) -> None:
    """A file's URL is a permission to read it, whoever holds it; to nothing else."""
    stranger = make_key(database)
    url = post(http, key, b"mine").json()["access_url"]
    assert http("GET", url, key=stranger.text).content == b"mine"
    assert store.key_of_own_url(url) is not None
    upload_id = initiate(http, stranger, "initiate-multipart")["upload_url"].rpartition("/")[2]
    for method, path in (
        ("PUT", url),
        ("PUT", f"{url}/multipart/{upload_id}/1"),
        ("POST", f"{url}/multipart/{upload_id}/complete"),
    ):
        assert http(method, path, key=stranger.text, json={"parts": []}).status_code == 403
    for method in ("DELETE", "PATCH", "POST"):
        assert http(method, url, key=stranger.text).status_code == 405
    path = urlsplit(url).path
    while path := path.rpartition("/")[0]:
        for listed in (path, f"{path}/"):
            assert http("GET", listed, key=stranger.text).status_code in (403, 404)
    assert http("GET", url, key=None).content == b"mine"


def test_an_upload_that_is_gone_takes_no_bytes(http: Client, database: Database, key: Key) -> None:
    """Retention removed it before it came."""
    url = initiate(http, key)["upload_url"]
    with database.write() as session:
        for row in session.scalars(select(Upload)):
            session.delete(row)
    assert http("PUT", url, key=None, content=b"x").status_code == 403
    assert uploads(database) == {}


def test_reservations_at_once_count_together(database: Database, database_url: str) -> None:
    key = make_key(database, max_storage_bytes=LIMIT)
    ready = threading.Barrier(4)
    granted: list[int] = []

    def gateway() -> None:
        own = Database(database_url)
        ready.wait(10)
        for _ in range(10):
            try:
                with own.write() as session:
                    granted.append(ledger.reserve(session, ledger.new_ticket(), key.id, 100, 300))
            except StorageLimitReached:
                pass
        own.close()

    threads = [threading.Thread(target=gateway) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert granted == [300, 300, 300, 100]
    assert used(database, key.id) == LIMIT


def test_two_gateways_begin_the_same_part(database: Database, database_url: str) -> None:
    """A client sends a part again while the first try is still on its way."""
    ready = threading.Barrier(4)
    errors: list[Exception] = []

    def gateway() -> None:
        own = Database(database_url)
        ready.wait(10)
        for number in range(20):
            try:
                with own.write() as session:
                    ledger.begin(session, f"parts/a/{number:05d}", "owner")
            except Exception as error:
                errors.append(error)
        own.close()

    threads = [threading.Thread(target=gateway) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(uploads(database)) == 20


def test_room_grows_with_a_body_that_does_not_say_its_size(
    http: Client, database: Database, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiving, "GROWTH_BYTES", 150)
    seen: list[int] = []

    async def body() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield b"x" * 100
            seen.append(used(database, key.id))

    assert post(http, key, body()).status_code == 200
    # 100 + 150, then 300 + 150 when the third piece does not fit, then 500 + 150.
    assert seen == [250, 250, 450, 450, 650]
    assert used(database, key.id) == 500
