"""The status as server-sent events (`fal-protocol.md` 1.4, C33)."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.db.models import Stage
from app.keys import store
from app.requests import lifecycle, stream
from app.requests.lifecycle import Log
from app.requests.watch import LOOK_EVERY_S
from tests.app.conftest import submit
from tests.app.live import Live, live
from tests.app.test_lifecycle import do

APP = "fal-ai/ltx23-trainer-v2"
PROMPTLY_S = 10.0
"""Long beside a look every half second, short beside a comment every 15 s."""


@pytest.fixture
def gateway(tmp_path: Path, database_url: str) -> Iterator[Live]:
    with live(tmp_path / "data", database_url=database_url) as gateway:
        yield gateway


class Listener:
    """Reads one stream."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._lines = response.iter_lines()

    def event(self) -> dict[str, Any] | None:
        """The next event; None at the stream's end. Comments are passed over."""
        for line in self._lines:
            if line.startswith("data: "):
                found: dict[str, Any] = json.loads(line.removeprefix("data: "))
                return found
            assert line == "" or line.startswith(":"), line
        return None

    def rest(self) -> list[dict[str, Any]]:
        return list(iter(self.event, None))


def listening(gateway: Live, request_id: str, prefix: str = APP, query: str = "logs=1") -> Any:
    return gateway.http.stream("GET", f"/{prefix}/requests/{request_id}/status/stream?{query}")


def messages(events: list[dict[str, Any]]) -> list[str]:
    return [line["message"] for event in events for line in event["logs"] or ()]


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PROMPTLY_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_life_of_a_request(gateway: Live) -> None:
    first, request_id = submit(gateway.database), submit(gateway.database)
    with listening(gateway, request_id) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-fal-request-id"] == request_id
        assert "content-length" not in response.headers
        listener = Listener(response)
        assert listener.event() == {
            **gateway.http.get(f"/{APP}/requests/{request_id}/status").json(),
            "queue_position": 1,
            "logs": [],
        }
        do(gateway.database, lifecycle.request_cancel, first, "local")
        moved = listener.event()
        assert moved is not None
        assert (moved["status"], moved["queue_position"]) == ("IN_QUEUE", 0)
        held = gateway.claimed()
        running = listener.event()
        assert running is not None
        assert running["status"] == "IN_PROGRESS"
        for lines in (["a", "b"], ["c"], ["d\nwith a break"], ["e"]):
            do(gateway.database, lifecycle.progress, held, logs=[Log(line) for line in lines])
            event = listener.event()
            assert event is not None
            assert [line["message"] for line in event["logs"]] == lines
        do(gateway.database, lifecycle.advance, held, {})
        train = gateway.claimed(Stage.TRAIN)
        do(gateway.database, lifecycle.progress, train, logs=[Log("last")])
        do(gateway.database, lifecycle.complete, train, {"x": 1}, 100, 1.5)
        rest = listener.rest()
    assert messages(rest) == ["last"]
    assert rest[-1]["status"] == "COMPLETED"
    assert rest[-1]["metrics"] == {"inference_time": 1.5}


@pytest.mark.parametrize("prefix", [APP, f"{APP}/t2v", "t2v"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_a_completed_request_is_one_event(gateway: Live, prefix: str, slash: str) -> None:
    request_id = submit(gateway.database)
    do(gateway.database, lifecycle.request_cancel, request_id, "local")
    url = f"/{prefix}/requests/{request_id}/status/stream{slash}"
    for query, logs in (("?logs=1", ["Cancellation requested."]), ("", None)):
        with gateway.http.stream("GET", url + query) as response:
            (event,) = Listener(response).rest()
        assert (event["status"], event["error_type"]) == ("COMPLETED", "client_cancelled")
        assert (event["logs"] and [line["message"] for line in event["logs"]]) == logs


def test_unknown_requests(gateway: Live) -> None:
    reply = gateway.http.get(f"/{APP}/requests/00000000-0000-4000-8000-000000000000/status/stream")
    assert (reply.status_code, reply.json()) == (404, {"status": "NOT_FOUND"})


def test_a_quiet_stream_is_kept_alive(gateway: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "COMMENT_EVERY_S", 0.05)
    with listening(gateway, submit(gateway.database)) as response:
        lines = response.iter_lines()
        seen = [next(lines) for _ in range(8)]
    assert sum(line.startswith("data:") for line in seen) == 1
    assert sum(line.startswith(":") for line in seen) == 3


@pytest.mark.parametrize("path", [f"{APP}/requests/{{id}}/status/stream", "requests/{id}/live"])
def test_a_stream_ends_with_its_key(
    gateway: Live, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(stream, "COMMENT_EVERY_S", 0.05)
    with gateway.database.write() as session:
        owner, key = store.create(session, "ann", store.Limits())
    url = "/" + path.format(id=submit(gateway.database, owner))
    headers = {"authorization": f"Key {key}"}
    with gateway.http.stream("GET", url, headers=headers) as response:
        lines = response.iter_lines()
        assert any(line.startswith(":") for line in lines), "told of the request, then kept open"
        with gateway.database.write() as session:
            store.revoke(session, owner)
        assert not any(line.startswith("data:") for line in lines), "and then ended"


def test_who_leaves_is_no_longer_looked_for(gateway: Live) -> None:
    with listening(gateway, submit(gateway.database)) as response:
        listener = Listener(response)  # which closes the connection when it goes
        listener.event()
        eventually(lambda: gateway.watcher.num_listeners == 1)
        response.close()
        eventually(lambda: gateway.watcher.num_listeners == 0)


def test_many_listeners_share_the_looking(gateway: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = gateway.watcher._look

    async def counted(ids: Any) -> Any:
        looks.append(len(ids))
        return await look(ids)

    monkeypatch.setattr(gateway.watcher, "_look", counted)
    ids = [submit(gateway.database) for _ in range(30)]
    for request_id in ids[1:]:
        do(gateway.database, lifecycle.request_cancel, request_id, "local")
    heard: list[list[dict[str, Any]]] = []

    def hear() -> None:
        with listening(gateway, ids[0]) as response:
            heard.append(Listener(response).rest())

    threads = [threading.Thread(target=hear) for _ in range(60)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    eventually(lambda: gateway.watcher.num_listeners == len(threads))
    held = gateway.claimed()
    do(gateway.database, lifecycle.progress, held, logs=[Log("one"), Log("two")])
    do(gateway.database, lifecycle.complete, held, {}, 100, 1.0)
    for thread in threads:
        thread.join()
    assert [messages(events) for events in heard] == [["one", "two"]] * len(threads)
    assert all(events[-1]["status"] == "COMPLETED" for events in heard)
    assert set(looks) == {1}
    assert len(looks) <= (time.monotonic() - started) / LOOK_EVERY_S + 2


def test_a_stopping_gateway_ends_streams(gateway: Live) -> None:
    with listening(gateway, submit(gateway.database)) as response:
        listener = Listener(response)
        listener.event()
        gateway.stop()
        assert listener.event() is None
    assert gateway.stopped(PROMPTLY_S / 2)


def test_a_log_longer_than_a_window_comes_whole(gateway: Live) -> None:
    request_id = submit(gateway.database)
    held = gateway.claimed()
    with listening(gateway, request_id) as response:
        listener = Listener(response)
        listener.event()
        lines = [Log(str(number)) for number in range(2_500)]
        do(gateway.database, lifecycle.progress, held, logs=lines)
        do(gateway.database, lifecycle.complete, held, {}, 100, 1.0)
        assert messages(listener.rest()) == [line.message for line in lines]
