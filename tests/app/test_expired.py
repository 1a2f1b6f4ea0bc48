"""What owners and others are told of a request that the retention has removed."""

import time
from pathlib import Path
from typing import Any

import pytest

from app.requests import lifecycle, retention
from app.settings import Settings
from tests.app.conftest import Gateway, put, row, running
from tests.app.test_lifecycle import FAILURE, claimed, do

BODY = {"training_data_url": "https://example.com/a.zip"}
APP = "fal-ai/ltx23-trainer-v2"
DAY_S = 24 * 3600.0
EXPIRED_AT = 1_767_270_600.0
"""2026-01-01T12:30Z."""
KEYS = {"mine": "k3y-one", "other": "k3y-two"}
DETAIL = "This request expired on 2026-01-01; results are kept for 30 days (REELSMITH_RETENTION_S)."

ROUTES = [
    ("GET", "/status"),
    ("GET", "/status?logs=1"),
    ("GET", "/status/stream"),
    ("GET", ""),
    ("GET", "/response"),
    ("GET", "/report"),
    ("GET", "/events"),
    ("PUT", "/cancel"),
]


def expired(gateway: Gateway, headers: dict[str, str] | None = None) -> str:
    """A finished request that was removed, by the sweep's own code."""
    reply = gateway.client.post("/t2v", json=BODY, headers=headers)
    request_id = str(reply.json()["request_id"])
    do(gateway.database, lifecycle.complete, claimed(gateway.database), {"x": 1}, 100, 1.0)
    put(gateway.database, request_id, finished_at=1.0)
    assert do(gateway.database, retention.expire, request_id, 30 * DAY_S)
    put(gateway.database, request_id, expired_at=EXPIRED_AT)
    return request_id


def headers(who: str) -> dict[str, str]:
    return {"Authorization": f"Key {KEYS[who]}"}


@pytest.mark.parametrize("prefix", [APP, f"{APP}/t2v", "t2v"])
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_its_owner_is_told_and_nobody_else(
    tmp_path: Path, migrated_sqlite: Path, prefix: str, method: str, path: str
) -> None:
    with running(tmp_path, migrated_sqlite, api_keys=tuple(KEYS.values())) as gateway:
        url = f"/{prefix}/requests/{expired(gateway, headers('mine'))}{path}"
        mine = gateway.client.request(method, url, headers=headers("mine"))
        assert mine.status_code == 404
        assert mine.json() == {"status": "NOT_FOUND", "detail": DETAIL}
        other = gateway.client.request(method, url, headers=headers("other"))
        assert (other.status_code, other.json()) == (404, {"status": "NOT_FOUND"})


def test_lists_leave_it_out(gateway: Gateway) -> None:
    request_id = expired(gateway)
    other = gateway.client.post("/t2v", json=BODY).json()["request_id"]
    listed = gateway.client.get("/requests").json()["requests"]
    assert [one["request_id"] for one in listed] == [other]
    alone = gateway.client.get(f"/requests/{request_id}")
    assert (alone.status_code, alone.json()["detail"]) == (404, DETAIL)


@pytest.mark.parametrize(
    ("retention_s", "says"),
    [
        (DAY_S, "results are kept for 1 day ("),
        (1.5 * DAY_S, "results are kept for 1.5 days ("),
        (0.0, "expired on 2026-01-01."),
    ],
)
def test_it_says_how_long_results_are_kept_now(
    tmp_path: Path, migrated_sqlite: Path, retention_s: float, says: str
) -> None:
    with running(tmp_path, migrated_sqlite, retention_s=retention_s) as gateway:
        reply = gateway.client.get(f"/t2v/requests/{expired(gateway)}")
        assert says in reply.json()["detail"]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_every_end_expires(gateway: Gateway, end: str) -> None:
    request: dict[str, Any] = gateway.client.post("/t2v", json=BODY).json()
    if end == "cancelled":
        gateway.client.put(request["cancel_url"])
    elif end == "failed":
        do(gateway.database, lifecycle.fail, claimed(gateway.database), **FAILURE, retryable=False)
    else:
        do(gateway.database, lifecycle.complete, claimed(gateway.database), {}, 100, 1.0)
    request_id = request["request_id"]
    put(gateway.database, request_id, finished_at=1.0)
    with gateway.database.read() as session:
        found = retention.expired_requests(session, 30 * DAY_S)
    assert found == [(request_id, row(gateway.database, request_id).storage_prefix)]
    assert do(gateway.database, retention.expire, request_id, 30 * DAY_S)
    assert not do(gateway.database, retention.expire, request_id, 30 * DAY_S)
    assert gateway.client.get(request["status_url"]).status_code == 404


def test_the_gateway_sweeps(tmp_path: Path, migrated_sqlite: Path) -> None:
    """At its start, and every quarter of an hour."""
    with running(tmp_path, migrated_sqlite) as gateway:
        request_id = gateway.client.post("/t2v", json=BODY).json()["request_id"]
        held = claimed(gateway.database)
        do(gateway.database, lifecycle.complete, held, {}, 100, 1.0)
        key = f"{held.storage_prefix}/outputs/1/lora"
        (tmp_path / "lora").write_text("weights")
        gateway.storage.put_file(key, tmp_path / "lora")
        put(gateway.database, request_id, finished_at=1.0)
    again = Gateway(Settings(data_dir=tmp_path, log_level="ERROR"), None)
    with again.client:
        wait_until_expired(again, request_id)
        assert again.storage.stat(key) is None
    again.database.close()


def wait_until_expired(gateway: Gateway, request_id: str) -> None:
    deadline = time.monotonic() + 30
    while row(gateway.database, request_id).expired_at is None:
        assert time.monotonic() < deadline, "nothing was swept"
        time.sleep(0.05)
