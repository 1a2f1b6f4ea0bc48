"""A request's life as the clients see it: C1-C6, C10, C13, C17, C20, C22-C26, C45."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conformance import two_part_mode
from tests.conformance.clients import JavaScript, Python
from tests.conformance.gateway import (
    ALICE,
    APP,
    OUTPAINT,
    T2V,
    VALID,
    VALID_OUTPAINT,
    Gateway,
    Worker,
    running,
    submit,
)
from tests.conformance.tls import Certificates
from tests.conformance.wire import Hop, wire
from workers.failures import users_fault

UNKNOWN = "00000000-0000-4000-8000-000000000000"


def test_c01_python_submit_gets_an_id_and_three_urls(python: Python, worker: Worker) -> None:
    handle = python(
        "tell(fal_client.submit(given.app, given.body))",
        key=ALICE,
        app=OUTPAINT,
        body=VALID_OUTPAINT,
    )
    base = f"/{APP}/requests/{handle['request_id']}"
    assert urlsplit(handle["response_url"]).path == base
    assert urlsplit(handle["status_url"]).path == f"{base}/status"
    assert urlsplit(handle["cancel_url"]).path == f"{base}/cancel"
    assert worker.row(handle["request_id"]).endpoint == OUTPAINT


def test_c01_by_host_variables(
    gateway: Gateway, certificates: Certificates, home: Path, worker: Worker
) -> None:
    """Recipe (a), the one for users: no proxy, two variables. A run has a prefix on one host."""
    host = f"localhost:{gateway.settings.port}"
    way = {"FAL_RUN_HOST": f"{host}/run", "FAL_QUEUE_RUN_HOST": host}
    client = Python(way, certificates.ca, home).start(
        """
        handle = fal_client.submit(given.app, given.body)
        tell(handle.request_id)
        tell(handle.get())
        """,
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    worker.run(client.told()).complete()
    assert client.end()[-1]["lora_file"]["url"].startswith(gateway.url)


def test_c02_javascript_finds_it_under_the_url_that_it_builds(
    python: Python, js: JavaScript, worker: Worker
) -> None:
    handle = python(
        "tell(fal_client.submit(given.app, given.body))",
        key=ALICE,
        app=OUTPAINT,
        body=VALID_OUTPAINT,
    )
    status = js(
        "tell(await fal.queue.status(given.app, { requestId: given.id }))",
        key=ALICE,
        app=OUTPAINT,
        id=handle["request_id"],
    )
    assert status["request_id"] == handle["request_id"]
    assert status["status"] == "IN_QUEUE"


@pytest.fixture
def two_part() -> Iterator[str]:
    """The id of a mode with a two-part sub path, known to this process as well."""
    two_part_mode.register()
    yield f"{APP}/{two_part_mode.PATH}"
    two_part_mode.unregister()


def test_c03_two_part_sub_path(
    two_part: str, certificates: Certificates, home: Path, tmp_path: Path
) -> None:
    """With a mode of that shape put into the registry: the product has none (README.md)."""
    command = ("-m", "tests.conformance.two_part_mode")
    with (
        running(tmp_path, certificates, command) as gateway,
        wire(certificates, gateway.settings.port) as (proxy, _, _),
        contextlib.closing(Worker(gateway)) as worker,
    ):
        python = Python({"HTTPS_PROXY": proxy.url}, certificates.ca, home)
        client = python.start(
            """
            handle = fal_client.submit(given.app, given.body)
            tell([handle, fal_client.status(given.app, handle.request_id)])
            tell(fal_client.result(given.app, handle.request_id))
            """,
            key=ALICE,
            app=two_part,
            body=VALID,
        )
        handle, status = client.told()
        request_id = handle["request_id"]
        assert urlsplit(handle["status_url"]).path == f"/{APP}/requests/{request_id}/status"
        assert status == {"is": "Queued", "position": 0}
        job = worker.run(request_id)
        assert (job.claim.endpoint, job.claim.mode) == (two_part, two_part_mode.PATH)
        job.complete()
        assert request_id in client.end()[-1]["lora_file"]["url"]


def test_c04_position_in_the_queue(python: Python, s: httpx.Client, worker: Worker) -> None:
    submit(s)
    worker.next()
    ids = [submit(s)["request_id"] for _ in range(3)]
    told = python(
        "tell([fal_client.status(given.app, id) for id in given.ids])", key=ALICE, app=T2V, ids=ids
    )
    assert told == [{"is": "Queued", "position": n} for n in range(3)]
    response = s.get(f"/{APP}/requests/{ids[0]}/status")
    assert response.status_code == 202
    assert set(response.json()) >= {"response_url", "status_url", "cancel_url", "request_id"}


def test_c05_logs_only_when_asked_for(python: Python, s: httpx.Client, worker: Worker) -> None:
    request = submit(s)
    worker.run(request["request_id"]).say("step 1 of 2000", "step 2 of 2000")
    without, with_logs = python(
        "tell([fal_client.status(given.app, given.id, with_logs=wish) for wish in (False, True)])",
        key=ALICE,
        app=T2V,
        id=request["request_id"],
    )
    assert without == {"is": "InProgress", "logs": None}
    assert with_logs["is"] == "InProgress"
    assert [line["message"] for line in with_logs["logs"]][-2:] == [
        "step 1 of 2000",
        "step 2 of 2000",
    ]
    assert all(line["timestamp"] for line in with_logs["logs"])


@pytest.mark.parametrize(
    ("query", "with_logs"),
    [
        pytest.param("?logs=1", True, id="1"),
        pytest.param("?logs=true", True, id="true"),
        pytest.param("?logs=0", False, id="0"),
        pytest.param("?logs=false", False, id="false"),
        pytest.param("", False, id="none"),
    ],
)
def test_c06_every_spelling_of_logs(
    s: httpx.Client, worker: Worker, query: str, with_logs: bool
) -> None:
    request = submit(s)
    worker.run(request["request_id"]).say("a line")
    body = s.get(request["status_url"] + query).json()
    assert "logs" in body
    if with_logs:
        assert body["logs"][-1]["message"] == "a line"
    else:
        assert body["logs"] is None


def test_c10_result_while_it_runs(
    counted_js: JavaScript, hop: Hop, s: httpx.Client, worker: Worker
) -> None:
    request = submit(s)
    worker.next()
    found = counted_js(
        "tell(await caught(() => fal.queue.result(given.app, { requestId: given.id })))",
        key=ALICE,
        app=T2V,
        id=request["request_id"],
    )
    assert found["isApiError"]
    assert found["status"] == 400
    assert found["body"]["detail"] == "Request is still in progress"
    assert len(hop.called("GET", request["request_id"])) == 1


def test_c13_status_of_a_failed_request(python: Python, s: httpx.Client, worker: Worker) -> None:
    request = submit(s)
    worker.run(request["request_id"]).fail(
        users_fault("no clips", error_type="invalid_archive", field="training_data_url")
    )
    found = python(
        "tell(caught(lambda: fal_client.status(given.app, given.id)))",
        key=ALICE,
        app=T2V,
        id=request["request_id"],
    )
    assert found["raised"] is None, found
    status = found["value"]
    assert status["is"] == "Completed"
    assert status["error"] == "no clips"
    assert status["error_type"] == "invalid_archive"


def test_c17_unknown_id(
    counted_python: Python, counted_js: JavaScript, hop: Hop, s: httpx.Client
) -> None:
    of_python = counted_python(
        "tell(caught(lambda: fal_client.status(given.app, given.id)))",
        key=ALICE,
        app=T2V,
        id=UNKNOWN,
    )
    assert of_python["raised"] == "FalClientHTTPError"
    assert of_python["status"] == 404
    assert "NOT_FOUND" in of_python["text"]
    of_js = counted_js(
        "tell(await caught(() => fal.queue.status(given.app, { requestId: given.id })))",
        key=ALICE,
        app=T2V,
        id=UNKNOWN,
    )
    assert of_js["status"] == 404
    assert of_js["body"]["status"] == "NOT_FOUND"
    assert len(hop.called("GET", UNKNOWN)) == 2, "one attempt of each"
    cancel = s.put(f"/{APP}/requests/{UNKNOWN}/cancel")
    assert cancel.status_code == 404
    assert cancel.json()["status"] == "NOT_FOUND"


def test_c20_cancel_while_queued(
    python: Python, js: JavaScript, s: httpx.Client, worker: Worker
) -> None:
    request = submit(s)
    assert (
        python(
            """
        handle = fal_client.SyncClient().get_handle(given.app, given.id)
        handle.cancel()
        tell([handle.status(), caught(handle.get)])
        """,
            key=ALICE,
            app=T2V,
            id=request["request_id"],
        )[0]["is"]
        == "Completed"
    )
    status = s.get(request["status_url"])
    assert status.status_code == 200
    assert status.json()["error_type"] == "client_cancelled"
    result = s.get(request["response_url"])
    assert result.status_code == 499
    assert result.json()["error_type"] == "client_cancelled"
    again = js(
        "tell(await caught(() => fal.queue.cancel(given.app, { requestId: given.id })))",
        key=ALICE,
        app=T2V,
        id=request["request_id"],
    )
    assert again["status"] == 400
    assert again["body"]["status"] == "ALREADY_COMPLETED"


def test_c22_cancel_after_the_end(python: Python, s: httpx.Client, worker: Worker) -> None:
    request = submit(s)
    worker.run(request["request_id"]).complete()
    found = python(
        "tell(caught(lambda: fal_client.cancel(given.app, given.id)))",
        key=ALICE,
        app=T2V,
        id=request["request_id"],
    )
    assert found["raised"] == "FalClientHTTPError"
    assert found["status"] == 400
    assert s.get(request["response_url"]).status_code == 200


def test_c23_client_timeout_cancels(
    python: Python, gateway: Gateway, s: httpx.Client, worker: Worker
) -> None:
    client = python.start(
        """
        def queued(request_id):
            tell(request_id)
        tell(caught(lambda: fal_client.subscribe(
            given.app, given.body, client_timeout=2, on_enqueue=queued)))
        """,
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    request_id = client.told()
    job = worker.run(request_id)  # it starts in time, and then takes a minute
    found = client.told()
    assert found["raised"] == "FalClientTimeoutError"
    assert found["request_id"] == request_id
    assert found["seconds"] < 10
    puts = gateway.logged(event="http", method="PUT", request_id=request_id)
    assert [line["status"] for line in puts] == [202]
    assert job.cancel_requested
    job.stop()
    client.end()  # a thread of it polls until the request is COMPLETED
    assert s.get(f"/{APP}/requests/{request_id}").status_code == 499


def test_c24_start_timeout(
    counted_python: Python, counted_js: JavaScript, hop: Hop, s: httpx.Client, worker: Worker
) -> None:
    submit(s)
    worker.next()  # the one worker is busy
    of_python = counted_python.start(
        "tell(caught(fal_client.submit(given.app, given.body, start_timeout=2).get))",
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    of_js = counted_js.start(
        """
        const { request_id } = await fal.queue.submit(
          given.app, { input: given.body, startTimeout: 2 });
        await fal.queue.subscribeToStatus(given.app, { requestId: request_id });
        tell(await caught(() => fal.queue.result(given.app, { requestId: request_id })));
        tell(request_id);
        """,
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    failed = of_python.end()[-1]
    assert failed["raised"] == "FalClientHTTPError"
    assert failed["status"] == 504
    assert failed["error_type"] == "request_timeout"
    assert failed["headers"]["x-fal-request-timeout-type"] == "user"
    failed_js, js_id = of_js.end()
    assert failed_js["status"] == 504
    assert failed_js["timeoutType"] == "user"
    python_id = failed["headers"]["x-fal-request-id"]
    for request_id in (python_id, js_id):
        assert len(hop.called("GET", f"/requests/{request_id}$")) == 1, "one attempt"


def test_c25_low_priority_runs_last(
    python: Python, js: JavaScript, s: httpx.Client, worker: Worker
) -> None:
    submit(s)
    busy = worker.next()
    low = js(
        """
        const options = { input: given.body, priority: "low" };
        tell((await fal.queue.submit(given.app, options)).request_id);
        """,
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    normal = [
        python("tell(fal_client.submit(given.app, given.body))", key=ALICE, app=T2V, body=VALID)[
            "request_id"
        ]
        for _ in range(2)
    ]
    late = submit(s)["request_id"]
    busy.complete()
    order = []
    for _ in range(4):
        job = worker.next()
        order.append(job.request_id)
        job.complete()
    assert order == [*normal, late, low]


def test_c26_no_longer_queue_than_the_caller_wants(s: httpx.Client, worker: Worker) -> None:
    for _ in range(3):
        submit(s)
    assert s.post(f"/{T2V}?fal_max_queue_length=2", json=VALID).status_code == 429
    assert s.post(f"/{T2V}", json=VALID).status_code == 200
    assert len([row for row in worker.rows() if row.state == "queued"]) == 4


def test_c45_ids_with_a_namespace_are_routed(python: Python, s: httpx.Client) -> None:
    found = python(
        "tell(caught(lambda: fal_client.status('workflows/me/x', given.id)))", key=ALICE, id=UNKNOWN
    )
    assert found["status"] == 404
    assert "NOT_FOUND" in found["text"]
    for method, suffix in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel")):
        response = s.request(method, f"/workflows/me/x/requests/{UNKNOWN}{suffix}")
        assert response.status_code == 404
        assert response.json()["status"] == "NOT_FOUND"
