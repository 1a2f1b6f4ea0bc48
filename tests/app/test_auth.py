"""Who may do what: keys, owners, and the single user (`reliability.md` T1, T5; C18, C19)."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import BaseRoute, Mount, Route

from app.auth import SINGLE_USER, owner_of
from app.db.engine import Database
from app.errors import REQUEST_ID
from app.requests import lifecycle
from tests.app.conftest import Gateway, row, running, submit
from tests.app.keys.conftest import make_key
from tests.app.test_lifecycle import claimed, do
from tests.app.test_lifecycle_machine import columns

BODY = {"training_data_url": "https://example.com/a.zip"}
KEY = "id:secret"
OTHER = "another-key"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("guarded")
    with running(folder, migrated_sqlite, api_keys=f"{KEY},{OTHER}") as gateway:
        yield gateway


@pytest.mark.parametrize("scheme", ["Key", "Bearer"])
@pytest.mark.parametrize("key", [KEY, OTHER])
def test_keys_open(guarded: Gateway, scheme: str, key: str) -> None:
    reply = guarded.client.post("/t2v", json=BODY, headers={"authorization": f"{scheme} {key}"})
    assert reply.status_code == 200
    assert row(guarded.database, reply.json()["request_id"]).owner == owner_of(key)


REFUSED = {
    "none": [],
    "empty": [("authorization", "")],
    "only the scheme": [("authorization", "Bearer")],
    "an empty key": [("authorization", "Key ")],
    "another key": [("authorization", "Key id:secret2")],
    "half a key": [("authorization", "Key id")],
    "no scheme": [("authorization", KEY)],
    "another scheme": [("authorization", f"Basic {KEY}")],
    "another case": [("authorization", f"key {KEY}")],
    "twice": [("authorization", f"Key {KEY}"), ("authorization", f"Key {KEY}")],
    "latin-1": [("authorization", b"Key \xff\xfe")],
}


@pytest.mark.parametrize("headers", REFUSED.values(), ids=REFUSED)
def test_refused(guarded: Gateway, headers: list[tuple[str, str]]) -> None:
    reply = guarded.client.post("/t2v", json=BODY, headers=headers)
    assert reply.status_code == 401
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "unauthorized"
    assert isinstance(reply.json()["detail"], str)
    assert "x-fal-request-id" in reply.headers


def test_a_key_in_the_query_is_ignored(guarded: Gateway) -> None:
    reply = guarded.client.post(f"/t2v?key={KEY}&fal_key={KEY}", json=BODY)
    assert reply.status_code == 401


def test_the_key_is_stored_nowhere(guarded: Gateway) -> None:
    headers = {"authorization": f"Key {KEY}"}
    assert guarded.client.post("/t2v", json=BODY, headers=headers).status_code == 200
    for path in guarded.settings.data_dir.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """(method, path) of all that name a request, below mounts too."""
    for route in routes:
        if isinstance(route, Mount):
            yield from ((method, route.path + path) for method, path in routes_of(route.routes))
        elif isinstance(route, Route) and "{request_id}" in route.path:
            yield from ((method, route.path) for method in sorted(route.methods or ()))


UNKNOWN = "00000000-0000-4000-8000-000000000000"
SUFFIXES = {"", "/status", "/response", "/cancel", "/report", "/events"}


def queued(database: Database, owner: str) -> str:
    return submit(database, owner=owner)


def running_now(database: Database, owner: str) -> str:
    request_id = submit(database, owner=owner)
    while claimed(database).request_id != request_id:
        pass
    return request_id


def done(database: Database, owner: str) -> str:
    request_id = submit(database, owner=owner)
    while (held := claimed(database)).request_id != request_id:
        pass
    do(database, lifecycle.complete, held, {"x": 1}, 100, 1.0)
    return request_id


def test_every_route_of_a_request_is_found(guarded: Gateway) -> None:
    found = {path.partition("{request_id}")[2] for _, path in routes_of(guarded.app.routes)}
    assert found >= SUFFIXES


@pytest.mark.parametrize("state", [queued, running_now, done])
def test_anothers_request_is_unknown_on_every_route(
    guarded: Gateway, state: Callable[[Database, str], str]
) -> None:
    """T5 and C19, for whatever routes there are. Keys of both kinds are strangers to each other."""
    known = make_key(guarded.database)
    key, other = {"authorization": f"Key {KEY}"}, {"authorization": f"Key {OTHER}"}
    for owner, stranger in (
        (owner_of(KEY), other),
        (owner_of(KEY), known.header),
        (known.id, key),
        (known.id, make_key(guarded.database).header),
    ):
        request_id = state(guarded.database, owner)
        before = seen(guarded.database, request_id)
        for method, path in routes_of(guarded.app.routes):
            replies = [
                guarded.client.request(method, filled(path, asked), headers=stranger)
                for asked in (request_id, UNKNOWN)
            ]
            assert [reply.status_code for reply in replies] == [404, 404], (method, path)
            contents = [
                reply.content.replace(asked.encode(), b"ID")
                for reply, asked in zip(replies, (request_id, UNKNOWN), strict=True)
            ]
            assert contents[0] == contents[1], (method, path)
            headers = [
                {name: value for name, value in reply.headers.items() if name != REQUEST_ID}
                for reply in replies
            ]
            assert headers[0] == headers[1], (method, path)
            if path.partition("{request_id}")[2] in SUFFIXES:
                assert contents[0] == b'{"status":"NOT_FOUND"}', (method, path)
            assert seen(guarded.database, request_id) == before, (method, path)


def seen(database: Database, request_id: str) -> dict[str, Any]:
    """The row, but for what the gateway does by itself meanwhile."""
    found = columns(database, request_id)
    return {name: value for name, value in found.items() if name not in ("woken_at", "wakes")}


def filled(path: str, request_id: str) -> str:
    """Every other part of a path is a number: most are."""
    return re.sub(r"\{[^}]*\}", "1", path.replace("{request_id}", request_id))


@pytest.mark.parametrize("path", ["/status", "/status?logs=1", "", "/cancel", "/events"])
def test_the_owner_finds_it(guarded: Gateway, path: str) -> None:
    """The test above would pass on a service that finds nothing."""
    key = make_key(guarded.database)
    request_id = submit(guarded.database, owner=key.id)
    method = "PUT" if path == "/cancel" else "GET"
    reply = guarded.client.request(method, f"/t2v/requests/{request_id}{path}", headers=key.header)
    assert reply.status_code in (200, 202, 400)
    assert reply.headers[REQUEST_ID] == request_id


def test_the_single_user_needs_no_key(shared_gateway: Gateway) -> None:
    for headers in ({}, {"authorization": "Key anything"}):
        reply = shared_gateway.client.post("/t2v", json=BODY, headers=headers)
        assert row(shared_gateway.database, reply.json()["request_id"]).owner == SINGLE_USER


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:1234", 200),
        ("[::1]:8000", 200),
        ("rebound.example.com", 403),
        ("127.0.0.1.example.com", 403),
    ],
)
def test_the_single_user_is_called_by_a_name_of_this_machine(
    shared_gateway: Gateway, host: str, status: int
) -> None:
    reply = shared_gateway.client.post("/t2v", json=BODY, headers={"host": host})
    assert reply.status_code == status
