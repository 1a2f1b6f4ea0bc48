"""A submit that comes twice makes one request, when its sender or the operator says so."""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, text

from app.db.engine import Database
from app.db.models import Request
from app.requests import lifecycle
from app.settings import Settings
from tests.app.conftest import Gateway, put, row, running
from tests.app.test_lifecycle import FAILURE, claimed, do

BODY = {"training_data_url": "https://example.com/a.zip"}
KEY = {"Idempotency-Key": "5f3c"}
DAY_S = 24 * 3600.0
WINDOW_S = 60.0


def post(gateway: Gateway, path: str = "t2v", headers: Any = None, **fields: Any) -> httpx.Response:
    return gateway.client.post(f"/{path}", json={**BODY, **fields}, headers=headers)


def count(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(Request)) or 0


def age(gateway: Gateway, request_id: str, seconds: float) -> None:
    put(gateway.database, request_id, created_at=Request.created_at - seconds)


def test_a_key_used_again_gets_the_first_answer(gateway: Gateway) -> None:
    first = post(gateway, headers=KEY)
    assert "idempotent-replayed" not in first.headers
    again = post(gateway, headers={**KEY, "x-fal-queue-priority": "low"})
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-fal-request-id"] == first.json()["request_id"]
    assert count(gateway.database) == 1
    assert row(gateway.database, first.json()["request_id"]).priority == 0


def test_the_two_paths_of_a_mode_are_one_endpoint(gateway: Gateway) -> None:
    first = post(gateway, headers=KEY)
    again = post(gateway, "fal-ai/ltx23-trainer-v2/t2v", headers=KEY)
    assert again.json() == first.json()


def test_a_default_spelled_out_is_the_same_body(gateway: Gateway) -> None:
    first = post(gateway, headers=KEY)
    assert post(gateway, headers=KEY, number_of_steps=2000).json() == first.json()


@pytest.mark.parametrize(
    ("path", "fields"), [("t2v", {"rank": 64}), ("extend-suffix", {})], ids=["body", "endpoint"]
)
def test_a_key_of_another_request_is_refused(
    gateway: Gateway, path: str, fields: dict[str, Any]
) -> None:
    first = post(gateway, headers=KEY).json()["request_id"]
    reply = post(gateway, path, KEY, **fields)
    assert reply.status_code == 422
    (detail,) = reply.json()["detail"]
    assert detail["loc"] == ["header", "idempotency-key"]
    assert detail["type"] == "idempotency_key_reused"
    assert first in detail["msg"]
    assert "new key" in detail["msg"]
    assert count(gateway.database) == 1


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "a\tb", "é" * 256])
def test_keys_that_are_none(gateway: Gateway, key: str) -> None:
    reply = post(gateway, headers={"Idempotency-Key": key.encode("latin-1")})
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["header", "idempotency-key"]
    assert count(gateway.database) == 0


def test_a_key_holds_a_day(gateway: Gateway) -> None:
    first = post(gateway, headers=KEY).json()["request_id"]
    age(gateway, first, DAY_S - 60)
    assert post(gateway, headers=KEY).json()["request_id"] == first
    age(gateway, first, 120)
    later = post(gateway, headers=KEY, rank=64)
    assert later.status_code == 200
    assert later.json()["request_id"] != first
    assert post(gateway, headers=KEY, rank=64).json()["request_id"] == later.json()["request_id"]


def test_a_key_finds_a_failed_request_too(gateway: Gateway) -> None:
    first = post(gateway, headers=KEY).json()["request_id"]
    do(gateway.database, lifecycle.fail, claimed(gateway.database), **FAILURE, retryable=False)
    assert post(gateway, headers=KEY).json()["request_id"] == first


def test_a_repeat_is_answered_although_the_queue_is_full(gateway: Gateway) -> None:
    first = post(gateway, headers=KEY).json()["request_id"]
    post(gateway)
    again = gateway.client.post("/t2v?fal_max_queue_length=1", json=BODY, headers=KEY)
    assert (again.status_code, again.json()["request_id"]) == (200, first)


def test_keys_are_the_owners(tmp_path: Path, migrated_sqlite: Path) -> None:
    with running(tmp_path, migrated_sqlite, api_keys=("k3y-one", "k3y-two")) as gateway:
        ids = {
            post(gateway, headers={**KEY, "Authorization": f"Key {key}"}).json()["request_id"]
            for key in ("k3y-one", "k3y-two")
        }
        assert len(ids) == 2


def test_equal_submits_are_two_requests_by_default(gateway: Gateway) -> None:
    assert post(gateway).json()["request_id"] != post(gateway).json()["request_id"]


def test_within_the_window_equal_submits_are_one_request(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    with running(tmp_path, migrated_sqlite, dedupe_window_s=WINDOW_S) as gateway:
        first = post(gateway).json()["request_id"]
        again = post(gateway)
        assert again.json()["request_id"] == first
        assert again.headers["idempotent-replayed"] == "true"
        assert post(gateway, rank=64).json()["request_id"] != first
        named = post(gateway, headers=KEY)
        assert named.json()["request_id"] != first, "a key of its own says that it is meant"
        for request_id in (first, named.json()["request_id"]):
            age(gateway, request_id, WINDOW_S + 1)
        assert post(gateway).json()["request_id"] != first


@pytest.mark.parametrize("end", ["failed", "cancelled", "cancel asked for", "completed"])
def test_a_bad_end_is_not_given_again(tmp_path: Path, migrated_sqlite: Path, end: str) -> None:
    with running(tmp_path, migrated_sqlite, dedupe_window_s=WINDOW_S) as gateway:
        first = post(gateway).json()
        held = claimed(gateway.database)
        if end == "failed":
            do(gateway.database, lifecycle.fail, held, **FAILURE, retryable=False)
        elif end == "completed":
            do(gateway.database, lifecycle.complete, held, {}, 100, 1.0)
        else:
            gateway.client.put(first["cancel_url"])
            if end == "cancelled":
                do(gateway.database, lifecycle.cancelled, held)
        again = post(gateway).json()["request_id"]
        assert (again == first["request_id"]) == (end == "completed")


@pytest.mark.parametrize("how", ["key", "window"])
def test_two_gateways_at_once_make_one_request(tmp_path: Path, database_url: str, how: str) -> None:
    """Many rounds of the same submit on both; in each, one request."""
    settings = Settings(
        data_dir=tmp_path / "data",
        log_level="ERROR",
        database_url=database_url,
        dedupe_window_s=WINDOW_S if how == "window" else 0.0,
    )
    rounds, repeats = 15, 8
    with contextlib.ExitStack() as stack:
        gateways = [Gateway(settings, None) for _ in range(2)]
        for gateway in gateways:
            stack.callback(gateway.database.close)
            stack.enter_context(gateway.client)
            # FastAPI makes its routes on the first call, which two threads can't do at once.
            assert gateway.client.get("/nowhere").status_code == 404
        threads = stack.enter_context(ThreadPoolExecutor(repeats))

        def submit(round: int, index: int) -> str:
            headers = {"Idempotency-Key": f"round-{round}"} if how == "key" else {}
            reply = post(gateways[index % 2], headers=headers, trigger_phrase=f"round {round}")
            assert reply.status_code == 200, reply.text
            return str(reply.json()["request_id"])

        for round in range(rounds):
            ids = set(threads.map(submit, [round] * repeats, range(repeats)))
            assert len(ids) == 1
        assert count(gateways[0].database) == rounds


def test_the_lookups_use_their_indexes(gateway: Gateway) -> None:
    """Every submit asks; a table of a million requests must not be read for it. (SQLite only:
    PostgreSQL reads a small table whole.)"""
    with gateway.database.read() as session:
        for column, index in (
            ("idempotency_key", "ix_requests_idempotency"),
            ("body_sha256", "ix_requests_body"),
        ):
            plan = session.execute(
                text(
                    f"EXPLAIN QUERY PLAN SELECT id FROM requests WHERE owner = 'a' "
                    f"AND {column} = 'x' AND created_at > 0"
                )
            ).all()
            assert index in str(plan)
