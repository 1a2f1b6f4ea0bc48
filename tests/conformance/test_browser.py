"""Streams, pages, the proxy route and synchronous runs: C33-C35, C47."""

import threading
import time
from typing import Any

import httpx
import pytest

from tests.conformance.clients import JavaScript, Python
from tests.conformance.gateway import ALICE, APP, T2V, VALID, Gateway, Worker, submit
from tests.conformance.wire import Hop

SILENCE_S = 60.0
"""After which proxies close a stream. Comments come every 15 s, on a busy machine a bit later."""
PAGE = "https://studio.example.com"


class RawStream(threading.Thread):
    """The stream's lines as they come, each with its time."""

    def __init__(self, gateway: Gateway, request_id: str) -> None:
        super().__init__()
        self._gateway = gateway
        self._path = f"/{APP}/requests/{request_id}/status/stream"
        self.content_type = ""
        self.lines: list[tuple[float, str]] = []

    def run(self) -> None:
        with (
            self._gateway.http() as http,
            http.stream("GET", self._path, params={"logs": 1}) as response,
        ):
            self.content_type = response.headers["content-type"]
            for line in response.iter_lines():
                self.lines.append((time.monotonic(), line))

    def comments_since(self, since: float) -> int:
        return sum(at > since and line.startswith(":") for at, line in self.lines)


def test_c33_stream(js: JavaScript, gateway: Gateway, worker: Worker) -> None:
    client = js.start(
        """
        await fal.subscribe(given.app, {
          input: given.body,
          mode: "streaming",
          logs: true,
          onEnqueue: (id) => tell(id),
          onQueueUpdate: (update) => tell({
            status: update.status,
            lines: (update.logs ?? []).map((line) => line.message),
          }),
        });
        tell("closed");
        """,
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    request_id = client.told()
    raw = RawStream(gateway, request_id)
    raw.start()
    job = worker.run(request_id)
    for number in range(1, 6):
        job.say(f"line {number}")
        # Live: it is there before the next one is said.
        while f"line {number}" not in client.told()["lines"]:
            pass
    quiet_since = time.monotonic()
    while not raw.comments_since(quiet_since):
        assert time.monotonic() < quiet_since + SILENCE_S, "no comment breaks the silence"
        time.sleep(0.1)
    job.complete()
    told = client.end()
    raw.join(20)
    assert not raw.is_alive(), "it closes after COMPLETED"

    assert told[-1] == "closed"
    last = told[-2]
    assert last["status"] == "COMPLETED"
    said = [line for line in last["lines"] if line.startswith("line ")]
    assert said == [f"line {number}" for number in range(1, 6)], "none is missing, none comes twice"

    assert raw.content_type.startswith("text/event-stream")


def test_c33_stream_that_is_opened_after_the_end(
    gateway: Gateway, s: httpx.Client, worker: Worker
) -> None:
    """It says COMPLETED once and closes."""
    request = submit(s)
    worker.run(request["request_id"]).complete()
    raw = RawStream(gateway, request["request_id"])
    raw.start()
    raw.join(10)
    assert not raw.is_alive()
    events = [line for _, line in raw.lines if line.startswith("data:")]
    assert len(events) == 1
    assert '"COMPLETED"' in events[0]


def test_c34_cors(gateway: Gateway, worker: Worker) -> None:
    asks = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-fal-queue-priority",
    }
    with gateway.http(None) as http:
        preflight = http.options(f"/{T2V}", headers=asks)
        assert preflight.is_success, preflight.text
        allowed = preflight.headers["access-control-allow-headers"].lower()
        assert all(name in allowed for name in asks["access-control-request-headers"].split(","))
        assert "POST" in preflight.headers["access-control-allow-methods"]
        key = {"origin": PAGE, "authorization": f"Key {ALICE}"}
        replies = [
            http.post(f"/{T2V}", headers=key, json=VALID),
            http.post(f"/{T2V}", headers=key, json={}),
            http.post(f"/{T2V}", headers={"origin": PAGE}, json=VALID),
            http.get(f"/{APP}/requests/none/status", headers=key),
        ]
    assert [reply.status_code for reply in replies] == [200, 422, 401, 404]
    for reply in (preflight, *replies):
        assert reply.headers["access-control-allow-origin"] in ("*", PAGE)
    for reply in replies:
        exposed = reply.headers["access-control-expose-headers"].lower()
        assert "x-fal-request-id" in exposed


def test_c35_proxy_route(counted_js: JavaScript, hop: Hop, s: httpx.Client, worker: Worker) -> None:
    client = counted_js.start(
        """
        const url = await fal.storage.upload(new Blob(["0123456789"], { type: "text/plain" }));
        tell(url);
        const result = await fal.subscribe(given.app, {
          input: { training_data_url: url },
          onEnqueue: (id) => tell(id),
        });
        tell(result.data);
        """,
        key=ALICE,
        app=T2V,
        proxyUrl=f"https://localhost:{hop.port}/proxy",
    )
    url = client.told()
    request_id = client.told()
    worker.run(request_id).complete()
    assert client.end()[-1]["lora_file"]["url"]
    assert s.get(url).text == "0123456789"
    assert {call.path for call in hop.calls} == {"/proxy"}
    targets = [call.headers["x-fal-target-url"] for call in hop.calls]
    assert targets[0].startswith("https://rest.fal.ai/storage/upload/initiate")
    assert targets[1] == f"https://queue.fal.run/{T2V}"
    assert targets[-1] == f"https://queue.fal.run/{APP}/requests/{request_id}"
    # The raw PUT went straight to the upload URL, which is not the hop's.
    assert not hop.called("PUT", "")


@pytest.mark.parametrize(
    "target",
    ["https://example.com/", "http://169.254.169.254/latest", "https://fal.run.example.com/", ""],
)
def test_c35_other_targets_are_refused(s: httpx.Client, target: str) -> None:
    response = s.post("/proxy", headers={"x-fal-target-url": target} if target else {})
    assert 400 <= response.status_code < 500
    assert response.json()["detail"]


def test_c47_python_run_answers_the_result(python: Python, s: httpx.Client, worker: Worker) -> None:
    before = len(worker.rows())
    client = python.start(
        "tell('asks'); tell(fal_client.run(given.app, given.body))", key=ALICE, app=T2V, body=VALID
    )
    client.told()
    job = next_of(worker)
    job.complete()
    result = client.end()[-1]
    assert result["lora_file"]["file_name"] == "lora.safetensors"
    assert len(worker.rows()) == before + 1


def test_c47_runs_that_take_too_long(
    counted_python: Python, counted_js: JavaScript, hop: Hop, worker: Worker
) -> None:
    """An error after the configured wait, one attempt, one request: the work is not repeated."""
    before = len(worker.rows())
    by_python = counted_python.start(
        "tell(caught(lambda: fal_client.run(given.app, given.body)))",
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    by_js = counted_js.start(
        "tell(await caught(() => fal.run(given.app, { input: given.body })))",
        key=ALICE,
        app=T2V,
        body=VALID,
        proxyUrl=f"https://localhost:{hop.port}/proxy",
    )
    found: list[dict[str, Any]] = [client.end()[-1] for client in (by_python, by_js)]
    assert [one["status"] for one in found] == [504, 504]
    assert all(one["seconds"] < 30 for one in found)
    assert "still in progress" in found[0]["message"]
    assert len(hop.called("POST", "")) == 2
    assert len(worker.rows()) == before + 2


def next_of(worker: Worker) -> Any:
    """The next request, once it is there."""
    deadline = time.monotonic() + 20
    while not any(row.state == "queued" for row in worker.rows()):
        assert time.monotonic() < deadline, "no request came"
        time.sleep(0.05)
    return worker.next()
