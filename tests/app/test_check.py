"""Checks at the gateway: their URLs, their rows, and the end that a worker gives them."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fal_client
import pytest
import uvicorn

from app import modes
from app.db.engine import Database
from app.db.models import Purpose, Stage
from app.dev import free_port
from app.gateway import create_app
from app.requests import lifecycle
from app.settings import Settings
from tests.app.asking import example
from tests.app.conftest import Gateway, row, submit
from tests.app.test_lifecycle import claim, claimed, do

BODY = {"training_data_url": "https://example.com/a.zip"}
APP = "fal-ai/ltx23-trainer-v2"
RESULT = {"ok": True, "samples": 2, "warnings": [], "report": {"verdict": "ok"}}


def check(gateway: Gateway, path: str = "t2v", **fields: Any) -> dict[str, Any]:
    reply = gateway.client.post(f"/{path}/check", json={**BODY, **fields})
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.mark.parametrize("mode", modes.all(), ids=lambda mode: mode.path)
@pytest.mark.parametrize("form", ["/{path}/check", "/{id}/check", "/{path}/check/"])
def test_every_mode_can_be_checked(shared_gateway: Gateway, mode: Any, form: str) -> None:
    body = example(mode)
    reply = shared_gateway.client.post(form.format(path=mode.path, id=mode.id), json=body)
    assert reply.status_code == 200
    stored = row(shared_gateway.database, reply.json()["request_id"])
    assert (stored.purpose, stored.endpoint, stored.mode) == ("check", mode.id, mode.path)
    assert mode.parse(stored.input) == mode.request_model.model_validate(body)
    base = f"{shared_gateway.settings.public_url}/{mode.app}/requests/{stored.id}"
    assert reply.json()["status_url"] == f"{base}/status"


def test_it_refuses_what_the_training_refuses(shared_gateway: Gateway) -> None:
    body = {**BODY, "rank": 7}
    replies = [shared_gateway.client.post(path, json=body) for path in ("/t2v/check", "/t2v")]
    assert [reply.status_code for reply in replies] == [422, 422]
    assert replies[0].json() == replies[1].json()


def test_a_check_waits_in_the_queue_of_all(gateway: Gateway) -> None:
    training = submit(gateway.database)
    checking = check(gateway)
    assert gateway.client.get(checking["status_url"]).json()["queue_position"] == 1
    assert [claimed(gateway.database).request_id for _ in range(2)] == [
        training,
        checking["request_id"],
    ]


@pytest.mark.parametrize("prefix", [APP, f"{APP}/t2v", "t2v", "t2v/check", f"{APP}/t2v/check"])
def test_its_result_is_found_and_free(gateway: Gateway, prefix: str) -> None:
    request_id = check(gateway)["request_id"]
    held = claimed(gateway.database)
    assert held.purpose == Purpose.CHECK
    do(gateway.database, lifecycle.complete, held, RESULT, 0, 1.5)
    status = gateway.client.get(f"/{prefix}/requests/{request_id}/status")
    assert (status.status_code, status.json()["status"]) == (200, "COMPLETED")
    result = gateway.client.get(f"/{prefix}/requests/{request_id}")
    assert (result.status_code, result.json()) == (200, RESULT)
    assert result.headers["x-fal-billable-units"] == "0"
    assert claim(gateway.database, Stage.TRAIN) is None


def test_cancel(gateway: Gateway) -> None:
    request = check(gateway)
    assert gateway.client.put(request["cancel_url"]).status_code == 202
    assert gateway.client.get(request["response_url"]).status_code == 499


def test_it_is_no_repeat_of_the_training(gateway: Gateway) -> None:
    key = {"Idempotency-Key": "one"}
    assert gateway.client.post("/t2v", json=BODY, headers=key).status_code == 200
    assert gateway.client.post("/t2v/check", json=BODY, headers=key).status_code == 422


def test_a_check_that_would_train_is_refused(database: Database) -> None:
    request_id = submit(database, purpose=Purpose.CHECK)
    held = claimed(database)
    with pytest.raises(AssertionError, match="never trained"):
        do(database, lifecycle.advance, held, {"key": "x"})
    assert (row(database, request_id).stage, row(database, request_id).prepared) == (
        Stage.PREPARE,
        None,
    )


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """A gateway on a real port, for clients that speak to one."""
    port = free_port()
    settings = Settings(data_dir=tmp_path, port=port, log_level="ERROR")
    app = create_app(settings, send=lambda queue: None)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            assert thread.is_alive(), "the server ended"
        yield port
    finally:
        server.should_exit = True
        thread.join()


def test_fals_client_subscribes_to_a_check(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fal_client.client, "QUEUE_URL_FORMAT", f"http://127.0.0.1:{port}/")
    database = Database(f"sqlite:///{tmp_path / 'reelsmith.db'}")

    def work() -> None:
        deadline = time.monotonic() + 30
        while (held := claim(database)) is None:
            assert time.monotonic() < deadline, "nothing was submitted"
            time.sleep(0.05)
        do(database, lifecycle.complete, held, RESULT, 0, 1.5)

    worker = threading.Thread(target=work)
    worker.start()
    client = fal_client.SyncClient(key="any")
    assert client.subscribe(f"{APP}/t2v/check", BODY) == RESULT
    client._client.close()
    worker.join()
    database.close()
