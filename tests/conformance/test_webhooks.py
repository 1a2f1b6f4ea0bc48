"""Webhooks and their signatures: C29-C32."""

import base64
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.conformance.clients import JavaScript, Python
from tests.conformance.gateway import ALICE, T2V, VALID, Worker, running, submit
from tests.conformance.receiver import HANG, MAX_AGE_S, Delivery, Receiver, verified
from tests.conformance.tls import Certificates
from workers.failures import users_fault

FIRST_WITHIN_S = 20.0
RETRIES_WITHIN_S = 60.0
KEYS_OF_BODY = {"request_id", "gateway_request_id", "status", "error", "payload"}
JWKS = "/.well-known/jwks.json"

WITH_WEBHOOK = """
    handle = fal_client.submit(given.app, given.body, webhook_url=given.url)
    tell(handle.request_id)
"""

NODE_VERIFIES = """
    const { createHash, createPublicKey, verify } = await import("node:crypto");
    const body = Buffer.from(given.body, "base64");
    const { "request-id": id, "user-id": user, timestamp, signature } = given.headers;
    const digest = createHash("sha256").update(body).digest("hex");
    const message = Buffer.from([id, user, timestamp, digest].join("\\n"), "utf8");
    const fresh = Math.abs(given.now - Number(timestamp)) <= given.maxAge;
    tell(fresh && given.keys.some((key) =>
      verify(null, message, createPublicKey({ key, format: "jwk" }), Buffer.from(signature, "hex"))
    ));
"""


@pytest.fixture(scope="module")
def jwks(_session_worker: Worker) -> list[dict[str, Any]]:
    """As rest.fal.ai serves it; receivers have no key."""
    with _session_worker.gateway.http(None) as http:
        response = http.get(JWKS)
    assert response.status_code == 200, response.text
    keys: list[dict[str, Any]] = response.json()["keys"]
    return keys


def test_c29_success_and_failure(
    python: Python,
    receiver: Receiver,
    s: httpx.Client,
    worker: Worker,
    jwks: list[dict[str, Any]],
) -> None:
    good, bad = (
        python(WITH_WEBHOOK, key=ALICE, app=T2V, body=VALID, url=receiver.url(path))
        for path in ("/good", "/bad")
    )
    worker.run(good).complete()
    worker.run(bad).fail(
        users_fault("no clips", error_type="invalid_archive", field="training_data_url")
    )
    for request_id, path, status in ((good, "/good", 200), (bad, "/bad", 422)):
        (delivery,) = receiver.wait(path, 1, FIRST_WITHIN_S)
        body = json.loads(delivery.body)
        assert set(body) == KEYS_OF_BODY
        assert body["request_id"] == body["gateway_request_id"] == request_id
        result = s.get(f"/{T2V}/requests/{request_id}")
        assert result.status_code == status
        assert without_urls(body["payload"]) == without_urls(result.json())
        assert verified(jwks, delivery)
        assert delivery.headers["request-id"] == request_id
        assert abs(delivery.at - int(delivery.headers["timestamp"])) <= 5
        if status == 200:
            assert (body["status"], body["error"]) == ("OK", None)
        else:
            assert body["status"] == "ERROR"
            assert "422" in body["error"]


def without_urls(value: Any) -> Any:
    """File URLs are signed anew each time they are read; all else must be equal."""
    if isinstance(value, dict):
        return {
            name: part.partition("/files/")[2].partition("/")[2]
            if name == "url" and "/files/" in part
            else without_urls(part)
            for name, part in value.items()
        }
    return [without_urls(part) for part in value] if isinstance(value, list) else value


def test_c30_signatures_by_fals_samples(
    js: JavaScript,
    receiver: Receiver,
    s: httpx.Client,
    worker: Worker,
    jwks: list[dict[str, Any]],
) -> None:
    response = s.post(f"/{T2V}", params={"fal_webhook": receiver.url("/signed")}, json=VALID)
    worker.run(response.json()["request_id"]).complete()
    (delivery,) = receiver.wait("/signed", 1, FIRST_WITHIN_S)
    now = time.time()
    flipped = bytes([delivery.body[0] ^ 1]) + delivery.body[1:]
    strange = base64.urlsafe_b64encode(
        Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    ).decode()
    cases: list[tuple[str, list[dict[str, Any]], Delivery, float, bool]] = [
        ("a flipped byte", jwks, dataclasses.replace(delivery, body=flipped), now, False),
        ("ten minutes later", jwks, delivery, now + 600, False),
        ("another key", [{"kty": "OKP", "crv": "Ed25519", "x": strange}], delivery, now, False),
        ("untouched", jwks, delivery, now, True),
    ]
    for what, keys, got, at, accepted in cases:
        assert verified(keys, got, at) is accepted, what
        by_node = js(
            NODE_VERIFIES,
            key=ALICE,
            keys=keys,
            headers=got.headers,
            body=base64.b64encode(got.body).decode(),
            now=at,
            maxAge=MAX_AGE_S,
        )
        assert by_node is accepted, what


def test_c31_receivers_that_fail(
    receiver: Receiver, s: httpx.Client, worker: Worker, jwks: list[dict[str, Any]]
) -> None:
    """All three at once: most of the time is waiting for retries."""
    urls = {
        "/fails": receiver.url("/fails", 500, 500),
        "/moved": receiver.url("/moved", 302),
        "/hangs": receiver.url("/hangs", HANG),
    }
    receiver.url("/elsewhere")
    ids = {}
    for path, url in urls.items():
        ids[path] = s.post(f"/{T2V}", params={"fal_webhook": url}, json=VALID).json()["request_id"]
        worker.run(ids[path]).complete()

    fails = receiver.wait("/fails", 3, RETRIES_WITHIN_S)
    assert len(fails) == 3
    assert {delivery.headers["request-id"] for delivery in fails} == {ids["/fails"]}
    assert len({delivery.headers["signature"] for delivery in fails}) == 3, "signed each time"
    assert all(verified(jwks, delivery, delivery.at) for delivery in fails)

    hangs = receiver.wait("/hangs", 2, RETRIES_WITHIN_S)
    assert len(hangs) == 2
    assert 15 <= hangs[1].at - hangs[0].at < 15 + 15, "15 s are a failure, then a first pause"

    assert len(receiver.got("/moved")) == 1, "tens of seconds later: no retry"
    assert receiver.got("/elsewhere") == [], "not followed"


def test_c32_private_addresses_only_by_configuration(
    certificates: Certificates, receiver: Receiver, s: httpx.Client, worker: Worker, tmp_path: Path
) -> None:
    """The first gateway has this machine on its list, the second has no list."""
    metadata = "http://169.254.169.254/latest"
    ours = receiver.url("/listed")
    response = s.post(f"/{T2V}", params={"fal_webhook": ours}, json=VALID)
    assert response.status_code == 200, response.text
    worker.run(response.json()["request_id"]).complete()
    assert receiver.wait("/listed", 1, FIRST_WITHIN_S)
    assert_refused(s.post(f"/{T2V}", params={"fal_webhook": metadata}, json=VALID))
    with running(tmp_path, certificates) as default, default.http() as http:
        for url in (ours, metadata, "http://[::1]/", "http://127.1/"):
            assert_refused(http.post(f"/{T2V}", params={"fal_webhook": url}, json=VALID))
        assert submit(http)


def assert_refused(response: httpx.Response) -> None:
    assert response.status_code == 422, response.text
    assert response.json()["detail"][0]["loc"] == ["query", "fal_webhook"]
