"""Who may do what: keys, owners, and the single user (`reliability.md` T1, T5; C18, C19)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.auth import SINGLE_USER, owner_of
from tests.app.conftest import Gateway, row, running, submit

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


ROUTES = [
    ("GET", "/status"),
    ("GET", ""),
    ("GET", "/response"),
    ("PUT", "/cancel"),
    ("GET", "/report"),
    ("GET", "/events"),
]


@pytest.mark.parametrize(("method", "suffix"), ROUTES, ids=lambda value: value.strip("/"))
@pytest.mark.parametrize(
    "prefix", ["fal-ai/ltx23-trainer-v2", "fal-ai/ltx23-trainer-v2/t2v", "t2v"]
)
def test_anothers_request_is_unknown(
    guarded: Gateway, method: str, suffix: str, prefix: str
) -> None:
    request_id = submit(guarded.database, owner=owner_of(KEY))
    stranger = {"authorization": f"Key {OTHER}"}
    replies = [
        guarded.client.request(method, f"/{prefix}/requests/{asked}{suffix}", headers=stranger)
        for asked in (request_id, "00000000-0000-4000-8000-000000000000")
    ]
    assert [reply.status_code for reply in replies] == [404, 404]
    assert replies[0].content == replies[1].content == b'{"status":"NOT_FOUND"}'
    assert set(replies[0].headers) == set(replies[1].headers)
    assert row(guarded.database, request_id).cancel_requested_at is None


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
