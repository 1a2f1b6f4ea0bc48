"""`/metrics`, `/healthz` and `/readyz`: what they say, to whom, and within what time."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.db.engine import Database
from app.db.models import Request
from app.dev import free_port
from app.gateway import create_app
from app.health import TIMEOUT_S
from app.requests import reaper
from app.settings import Settings
from tests.app.conftest import Gateway, put, running, submit
from tests.app.test_lifecycle import claimed, do

BODY = {"training_data_url": "https://example.com/a.zip"}
KEY = "a-key-of-the-environment"


def numbers(page: str) -> dict[str, float]:
    """Each series with its value."""
    lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


@pytest.fixture
def unreaped(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Gateway]:
    """Its reaper has looked once, before anything was there, and looks no more."""
    with running(tmp_path, migrated_sqlite, reaper_interval_s=3600) as gateway:
        yield gateway


def test_what_the_tables_know(unreaped: Gateway) -> None:
    gateway = unreaped
    for _ in range(2):
        assert gateway.client.post("/t2v", json=BODY).status_code == 200
    put(gateway.database, claimed(gateway.database).request_id, lease_expires_at=1.0)
    page = gateway.client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    found = numbers(page.text)
    assert found['reelsmith_queue_depth{queue="cpu"}'] == 1
    assert found['reelsmith_queue_depth{queue="gpu"}'] == 0
    assert found['reelsmith_requests{mode="t2v",state="running",status=""}'] == 1
    assert found["reelsmith_leases_overdue"] == 1
    assert found["reelsmith_database_up"] == 1
    assert found['reelsmith_queue_oldest_seconds{queue="cpu"}'] >= 0
    assert found['reelsmith_submits_total{mode="t2v",repeated="false"}'] >= 2
    assert found["process_open_fds"] > 0


def test_without_its_database_the_rest_is_told(gateway: Gateway) -> None:
    with gateway.database.write() as session:
        session.execute(text("DROP TABLE requests"))
    found = numbers(gateway.client.get("/metrics").text)
    assert found["reelsmith_database_up"] == 0
    assert "reelsmith_leases_overdue" not in found
    assert found["process_open_fds"] > 0


def test_with_keys_metrics_are_nobodys_but_the_operators(
    tmp_path: Path, migrated_sqlite: Path
) -> None:
    port = free_port()
    with running(tmp_path, migrated_sqlite, api_keys=KEY, metrics_port=port) as gateway:
        assert gateway.client.get("/metrics").status_code == 401
        headers = {"authorization": f"Key {KEY}"}
        assert gateway.client.get("/metrics", headers=headers).status_code == 404
        found = numbers(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
        assert found["reelsmith_database_up"] == 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)


def test_every_number_is_in_the_documents(gateway: Gateway) -> None:
    """And every number that dashboard and alerts ask for exists."""
    submit(gateway.database)
    page = gateway.client.get("/metrics").text
    told = set(re.findall(r"# TYPE (reelsmith_\w+)", page))
    docs = Path(__file__).parents[2] / "docs" / "operations.md"
    monitoring = Path(__file__).parents[2] / "docker" / "monitoring"
    described = set(re.findall(r"`(reelsmith_\w+)", docs.read_text()))
    assert told - described == set(), "not described"
    for file in ("alerts.yml", "grafana/reelsmith.json"):
        used = set(re.findall(r"reelsmith_[a-z_]+", (monitoring / file).read_text()))
        used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
        assert used - told - {"reelsmith_metrics_port"} == set(), file


@pytest.mark.parametrize("path", ["/healthz", "/health"])
def test_it_lives(gateway: Gateway, path: str) -> None:
    assert gateway.client.get(path).json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/readyz", "/ready"])
def test_it_is_ready(gateway: Gateway, path: str) -> None:
    checks = {"database": "ok", "store": "ok"}
    assert gateway.client.get(path).json() == {"status": "ok", "checks": checks}


def _drop_the_version(gateway: Gateway) -> None:
    with gateway.database.write() as session:
        session.execute(text("DROP TABLE alembic_version"))


def _break_the_store(gateway: Gateway) -> None:
    incoming = gateway.settings.data_dir / "storage" / "incoming"
    broken = False
    while not broken:
        shutil.rmtree(incoming)
        with contextlib.suppress(IsADirectoryError):  # its sweeper has just made it again
            incoming.write_text("no folder")
            broken = True


@pytest.mark.parametrize(
    ("damage", "check"), [(_drop_the_version, "database"), (_break_the_store, "store")]
)
def test_it_is_not_ready_and_says_why(gateway: Gateway, damage: Any, check: str) -> None:
    damage(gateway)
    reply = gateway.client.get("/readyz")
    assert reply.status_code == 503
    said = reply.json()
    assert said["status"] == "not ready"
    assert said["checks"].pop(check).startswith("fails: ")
    assert set(said["checks"].values()) == {"ok"}
    store = gateway.client.get("/overview").json()["store"]
    assert (store["ok"], store["ms"] is None) == (check != "store", check == "store")


def test_without_its_broker_it_serves(tmp_path: Path, migrated_sqlite: Path) -> None:
    shutil.copy(migrated_sqlite, tmp_path / "reelsmith.db")
    redis = f"redis://:secret@127.0.0.1:{free_port()}/0"
    settings = Settings.model_validate(
        {"data_dir": tmp_path, "redis_url": redis, "log_level": "ERROR"}
    )
    with TestClient(create_app(settings), base_url=settings.public_url) as client:
        reply = client.get("/readyz")
        assert reply.status_code == 200
        assert reply.json()["status"] == "degraded"
        assert reply.json()["checks"]["broker"] != "ok"
        assert "secret" not in reply.text
        assert reply.elapsed.total_seconds() < 10 * TIMEOUT_S


def test_only_the_first_attempt_has_waited(database: Database) -> None:
    request_id = submit(database)
    held = claimed(database)
    assert held.waited_s is not None
    put(database, request_id, lease_expires_at=Request.lease_expires_at - 3600)
    assert do(database, reaper.reap).requeued == [request_id]
    assert claimed(database).waited_s is None
