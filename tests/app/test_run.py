"""fal's synchronous run (`fal-protocol.md` 1.4, C47)."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select

from app.db.models import Request, State
from app.requests import lifecycle
from tests.app.conftest import row
from tests.app.live import Live, live
from tests.app.test_lifecycle import do

BODY = {"training_data_url": "https://example.com/a.zip"}
RUN = "/run/fal-ai/ltx23-trainer-v2/t2v"


@pytest.fixture
def gateway(tmp_path: Path, database_url: str) -> Iterator[Live]:
    with live(tmp_path, database_url=database_url, api_keys="secret") as gateway:
        gateway.http.headers["authorization"] = "Key secret"
        yield gateway


def in_background(ask: Callable[[], httpx.Response]) -> Callable[[], httpx.Response]:
    replies: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: replies.append(ask()))
    thread.start()

    def reply() -> httpx.Response:
        thread.join(20)
        return replies[0]

    return reply


def only_request(gateway: Live) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with gateway.database.read() as session:
            ids = session.scalars(select(Request.id)).all()
        if ids:
            assert len(ids) == 1
            return ids[0]
        time.sleep(0.01)
    raise AssertionError("nothing was submitted")


FORMS: dict[str, tuple[str, dict[str, str]]] = {
    "prefix": (RUN, {}),
    "short": ("/run/t2v", {}),
    "slash": (f"{RUN}/", {}),
    "host": ("/fal-ai/ltx23-trainer-v2/t2v", {"host": "fal.run"}),
    "proxied": ("/proxy", {"x-fal-target-url": "https://fal.run/fal-ai/ltx23-trainer-v2/t2v"}),
}


@pytest.mark.parametrize(("path", "headers"), FORMS.values(), ids=FORMS)
def test_the_result_is_the_reply(gateway: Live, path: str, headers: dict[str, str]) -> None:
    reply = in_background(lambda: gateway.http.post(path, json=BODY, headers=headers))
    request_id = only_request(gateway)
    do(gateway.database, lifecycle.complete, gateway.claimed(), {"x": 1}, 200, 1.0)
    assert (reply().status_code, reply().json()) == (200, {"x": 1})
    assert reply().headers["x-fal-request-id"] == request_id
    assert reply().headers["x-fal-billable-units"] == "200"


def test_a_failure_is_replayed(gateway: Live) -> None:
    reply = in_background(lambda: gateway.http.post(RUN, json=BODY))
    request_id = only_request(gateway)
    gateway.http.put(f"/t2v/requests/{request_id}/cancel")
    assert reply().status_code == 499
    assert reply().json()["error_type"] == "client_cancelled"


def test_invalid_input_is_refused_at_once(gateway: Live) -> None:
    reply = gateway.http.post(RUN)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "training_data_url"]


def check_still_running(gateway: Live, reply: httpx.Response) -> None:
    request_id = only_request(gateway)
    assert reply.status_code == 504
    # Without it both clients would send the training once more.
    assert reply.headers["x-fal-request-timeout-type"] == "user"
    assert reply.headers["x-fal-request-id"] == request_id
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "run_timeout"
    assert f"/requests/{request_id}/status" in reply.json()["detail"]
    assert row(gateway.database, request_id).state == State.QUEUED


def test_the_limit_passes(tmp_path: Path) -> None:
    with live(tmp_path, run_wait_s=0.1) as gateway:
        check_still_running(gateway, gateway.http.post(RUN, json=BODY))


def test_a_stopping_gateway_answers(gateway: Live) -> None:
    reply = in_background(lambda: gateway.http.post(RUN, json=BODY))
    only_request(gateway)
    gateway.stop()
    check_still_running(gateway, reply())


def test_who_leaves_loses_nothing(gateway: Live) -> None:
    with pytest.raises(httpx.ReadTimeout):
        gateway.http.post(RUN, json=BODY, timeout=httpx.Timeout(20, read=1.0))
    request_id = only_request(gateway)
    deadline = time.monotonic() + 60
    while gateway.watcher.num_listeners and time.monotonic() < deadline:
        time.sleep(0.01)
    assert gateway.watcher.num_listeners == 0
    do(gateway.database, lifecycle.complete, gateway.claimed(), {"x": 2}, 100, 1.0)
    assert gateway.http.get(f"/t2v/requests/{request_id}").json() == {"x": 2}


@pytest.mark.parametrize("host", ["queue.fal.run", "127.0.0.1:8000"])
def test_other_hosts_submit(gateway: Live, host: str) -> None:
    reply: Any = gateway.http.post("/t2v", json=BODY, headers={"host": host}).json()
    assert reply["status"] == "IN_QUEUE"
    with gateway.database.read() as session:
        assert session.scalar(select(func.count()).select_from(Request)) == 1
