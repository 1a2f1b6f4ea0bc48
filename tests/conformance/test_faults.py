"""Answers on the way that are not the service's own: C27, C28."""

import httpx

from tests.conformance.clients import JavaScript, Python
from tests.conformance.gateway import ALICE, T2V, VALID, Worker
from tests.conformance.wire import Hop


def test_c27_submit_repeated_after_429(
    counted_python: Python, counted_js: JavaScript, hop: Hop, worker: Worker
) -> None:
    before = {row.id for row in worker.rows()}
    hop.fault(429, "POST", T2V, times=2)
    by_python = counted_python(
        "tell(fal_client.submit(given.app, given.body).request_id)", key=ALICE, app=T2V, body=VALID
    )
    hop.fault(429, "POST", T2V, times=2)
    by_js = counted_js(
        "tell((await fal.queue.submit(given.app, { input: given.body })).request_id)",
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    assert [call.status for call in hop.called("POST", T2V)] == [429, 429, 200] * 2
    assert {row.id for row in worker.rows()} - before == {by_python, by_js}


def test_c28_javascript_survives_500_on_status(
    counted_js: JavaScript, hop: Hop, worker: Worker
) -> None:
    fault = hop.fault(500, "GET", "/status", times=2)
    client = counted_js.start(
        """
        const options = { input: given.body, onEnqueue: (id) => tell(id) };
        tell((await fal.subscribe(given.app, options)).data);
        """,
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    request_id = client.told()
    worker.run(request_id).complete()
    assert client.end()[-1]["lora_file"]["file_name"] == "lora.safetensors"
    assert fault.times == 0


def test_c28_python_raises_500_on_status(
    counted_python: Python, hop: Hop, s: httpx.Client, worker: Worker
) -> None:
    """fal's client repeats no 500: its documented limit. The request goes on."""
    hop.fault(500, "GET", "/status", times=2)
    client = counted_python.start(
        """
        tell(caught(lambda: fal_client.subscribe(given.app, given.body, on_enqueue=tell)))
        """,
        key=ALICE,
        app=T2V,
        body=VALID,
    )
    request_id = client.told()
    found = client.end()[-1]
    assert found["raised"] == "FalClientHTTPError"
    assert found["status"] == 500
    worker.run(request_id).complete()
    assert s.get(f"/{T2V}/requests/{request_id}").status_code == 200
