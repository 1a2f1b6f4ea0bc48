"""Who may ask: C18, C19."""

import httpx
import pytest

from tests.conformance.clients import Python
from tests.conformance.gateway import ALICE, APP, BOB, T2V, VALID, Gateway, Worker, submit
from tests.conformance.wire import Hop

UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize(
    ("key", "scheme", "status"),
    [
        pytest.param(None, "", 401, id="none"),
        pytest.param("wrong", "Key", 401, id="wrong"),
        pytest.param("x", "Bearer", 401, id="a token that nobody has"),
        pytest.param("alice", "Key", 401, id="the id without the secret"),
        pytest.param(ALICE, "Key", 200, id="id and secret"),
        pytest.param(ALICE, "Bearer", 200, id="id and secret as a token"),
    ],
)
def test_c18_keys(
    gateway: Gateway, worker: Worker, key: str | None, scheme: str, status: int
) -> None:
    with gateway.http(key, scheme) as http:
        response = http.post(f"/{T2V}", json=VALID)
    assert response.status_code == status, response.text
    if status == 401:
        assert response.json()["detail"]


@pytest.mark.parametrize("key", ["wrong", "wrong:secret"])
def test_c18_python_raises_once(counted_python: Python, hop: Hop, worker: Worker, key: str) -> None:
    found = counted_python(
        "tell(caught(lambda: fal_client.submit(given.app, given.body)))",
        key=key,
        app=T2V,
        body=VALID,
    )
    assert found["raised"] == "FalClientHTTPError"
    assert found["status"] == 401
    assert [call.status for call in hop.called("POST", T2V)] == [401]


def test_c19_another_keys_request(gateway: Gateway, s: httpx.Client, worker: Worker) -> None:
    """Answered as an unknown id is, before and after the end."""
    request = submit(s)
    with gateway.http(BOB) as bob:
        for _ in range(2):
            for method, suffix in (("GET", "/status"), ("GET", ""), ("PUT", "/cancel")):
                theirs, none = (
                    bob.request(method, f"/{APP}/requests/{request_id}{suffix}")
                    for request_id in (request["request_id"], UNKNOWN)
                )
                assert theirs.status_code == 404
                assert theirs.json() == none.json()
                assert not set(theirs.headers) ^ set(none.headers)
            if worker.row(request["request_id"]).state == "queued":
                worker.run(request["request_id"]).complete()
    assert s.get(request["response_url"]).status_code == 200
