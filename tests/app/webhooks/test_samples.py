"""The page's verification samples, as printed there, on deliveries of a real gateway (C29, C30)."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.db.models import Stage
from app.requests import lifecycle
from app.webhooks.keys import KeyRing
from app.webhooks.message import signature_headers
from tests.app.live import Live, live
from tests.app.test_lifecycle import claimed, do
from tests.app.webhooks.conftest import ERROR_BODY, attempts, due
from tests.app.webhooks.receiver import Received, Receiver, receiving, status

PAGE = (Path(__file__).parents[3] / "docs" / "webhooks.md").read_text()
BODY = {"training_data_url": "https://example.com/a.zip"}
PRINTED_URL = "http://127.0.0.1:8000"

RUN_PYTHON = """
cases = json.load(sys.stdin)
keys = fetch_keys()
print(json.dumps([is_genuine(c["headers"], c["body"].encode("latin-1"), keys) for c in cases]))
"""
RUN_NODE = """
import { readFileSync } from "node:fs";
const cases = JSON.parse(readFileSync(0, "utf8"));
const keys = await fetchKeys();
console.log(JSON.stringify(
  cases.map((c) => isGenuine(c.headers, Buffer.from(c.body, "latin1"), keys))));
"""


def sample(language: str) -> str:
    """The page's one code block of that language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def node() -> str:
    found = shutil.which("node")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("CI must have Node")
        pytest.skip("node is not installed")
    return found


@dataclass
class Delivered:
    """A gateway, and what it sent: a success, then a failure."""

    gateway: Live
    receiver: Receiver
    success: Received
    failure: Received


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Delivered]:
    folder = tmp_path_factory.mktemp("gateway")
    with (
        # The failure is delivered at its third attempt.
        receiving(status(200), status(500), status(503), status(200)) as receiver,
        live(
            folder,
            webhook_allow_private_hosts=("127.0.0.1",),
            webhook_extra_ports=(receiver.port,),
        ) as gateway,
    ):
        submit(gateway, receiver)
        do(gateway.database, lifecycle.advance, claimed(gateway.database), {})
        train = claimed(gateway.database, Stage.TRAIN)
        do(gateway.database, lifecycle.complete, train, result(), 100, 1.5)
        receiver.wait_for(1)
        failing = submit(gateway, receiver)
        do(
            gateway.database,
            lifecycle.fail,
            claimed(gateway.database),
            status=422,
            body=ERROR_BODY,
            error="bad",
            error_type="invalid_archive",
            retryable=False,
        )
        for number in (1, 2):
            while num_answered(gateway, failing) < number:
                time.sleep(0.02)
            due(gateway.database, failing)
        received = receiver.wait_for(4)
        yield Delivered(gateway, receiver, received[0], received[3])


def submit(gateway: Live, receiver: Receiver) -> str:
    reply = gateway.http.post("/t2v", params={"fal_webhook": receiver.url}, json=BODY)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["request_id"])


def num_answered(gateway: Live, request_id: str) -> int:
    return sum(attempt.status is not None for attempt in attempts(gateway.database, request_id))


def result() -> dict[str, Any]:
    file = {"key": "requests/x/lora.safetensors", "file_name": "lora.safetensors"}
    file["content_type"] = "application/octet-stream"
    return {"lora_file": {**file, "file_size": 7}, "note": "été ✓"}


def without_signatures(body: Any) -> Any:
    """``body`` with the moment of signing taken out of its file URLs."""
    text = json.dumps(body)
    return json.loads(re.sub(r"/files/\d+-[0-9a-f]{64}/", "/files/.../", text))


def test_bodies_are_what_the_result_route_answers(delivered: Delivered) -> None:
    for got, code in ((delivered.success, 200), (delivered.failure, 422)):
        request_id = got.json["request_id"]
        reply = delivered.gateway.http.get(f"/t2v/requests/{request_id}")
        assert reply.status_code == code
        assert without_signatures(got.json["payload"]) == without_signatures(reply.json())
        assert got.headers["x-fal-webhook-request-id"] == request_id
        assert got.headers["x-fal-webhook-user-id"] == "local"
    assert delivered.success.json["error"] is None
    assert delivered.failure.json["error"] == "Invalid status code: 422"


def test_every_attempt_is_signed_anew(delivered: Delivered) -> None:
    tries = delivered.receiver.received[1:4]
    assert len({got.body for got in tries}) == 1
    assert len({got.headers["x-fal-webhook-signature"] for got in tries}) == 3
    for got in delivered.receiver.received:
        assert abs(got.at - int(got.headers["x-fal-webhook-timestamp"])) <= 5


def test_anybody_may_read_the_keys(delivered: Delivered) -> None:
    reply = delivered.gateway.http.get(
        "/.well-known/jwks.json", headers={"origin": "https://studio.example.com"}
    )
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["cache-control"] == "public, max-age=3600"
    (key,) = reply.json()["keys"]
    assert (key["kty"], key["crv"], len(key["x"])) == ("OKP", "Ed25519", 44)


def cases(delivered: Delivered) -> dict[str, tuple[dict[str, str], bytes, bool]]:
    """Headers and body of a delivery, and whether a receiver should believe it."""
    got = delivered.success
    names = [name for name in got.headers if name.startswith("x-fal-webhook-")]
    headers = {name: got.headers[name] for name in names}
    flipped = bytearray(got.body)
    flipped[len(flipped) // 2] ^= 1
    ours = do(delivered.gateway.database, KeyRing.of(delivered.gateway.settings).ensure).private
    now = int(time.time())

    def signed(key: Ed25519PrivateKey, timestamp: int) -> dict[str, str]:
        made = signature_headers(key, got.json["request_id"], "local", timestamp, got.body)
        return {name.lower(): value for name, value in made.items()}

    def changed(name: str, value: str) -> dict[str, str]:
        return {**headers, f"x-fal-webhook-{name}": value}

    found = {
        "untouched": (headers, got.body, True),
        "a failure": (
            {name: delivered.failure.headers[name] for name in names},
            delivered.failure.body,
            True,
        ),
        "a flipped byte": (headers, bytes(flipped), False),
        "ten minutes old": (signed(ours, now - 600), got.body, False),
        "ten minutes early": (signed(ours, now + 600), got.body, False),
        "four minutes old": (signed(ours, now - 240), got.body, True),
        "another key": (signed(Ed25519PrivateKey.generate(), now), got.body, False),
        "a new timestamp": (changed("timestamp", str(now - 1)), got.body, False),
        "no timestamp": (changed("timestamp", "soon"), got.body, False),
        "another request": (changed("request-id", "x"), got.body, False),
        "another user": (changed("user-id", "x"), got.body, False),
        "no signature": (changed("signature", "zz"), got.body, False),
        "half a signature": (
            changed("signature", headers["x-fal-webhook-signature"][:64]),
            got.body,
            False,
        ),
    }
    for name in names:
        rest = {other: value for other, value in headers.items() if other != name}
        found[f"without {name}"] = (rest, got.body, False)
    return found


def verdicts(delivered: Delivered, command: list[str], code: str, path: Path) -> None:
    path.write_text(code.replace(PRINTED_URL, delivered.gateway.settings.public_url))
    asked = cases(delivered)
    given = [{"headers": h, "body": body.decode("latin-1")} for h, body, _ in asked.values()]
    done = subprocess.run(
        [*command, str(path)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = dict(zip(asked, json.loads(done.stdout), strict=True))
    assert said == {name: expected for name, (_, _, expected) in asked.items()}


def test_the_python_sample(delivered: Delivered, tmp_path: Path) -> None:
    code = f"import sys\n{sample('python')}\n{RUN_PYTHON}"
    verdicts(delivered, [sys.executable, "-W", "error"], code, tmp_path / "verify.py")


def test_the_javascript_sample(delivered: Delivered, tmp_path: Path) -> None:
    code = sample("javascript") + RUN_NODE
    verdicts(delivered, [node()], code, tmp_path / "verify.mjs")
