"""Every operation of the OpenAPI document, asked by schemathesis: no 5xx, nothing undocumented."""

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.dev import free_port

KEY = "secret"
CONFIG = """
[parameters]
"path.request_id" = "{request_id}"

[checks]
# The rules that only a whole request shows are in no schema; and headers that fal ignores, such as
# an unknown priority, are ignored.
negative_data_rejection.enabled = false
positive_data_acceptance.enabled = false

[[operations]]
# Nobody works here, so that every run waits in vain.
include-path-regex = "^/run/"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", 504]

[[operations]]
# Each has a parameter for every field of its mode; one of them stands for all in this phase.
include-method = "GET"
include-path-regex = "^/(?!t2v/).+/estimate$"
phases.coverage.enabled = false

[[operations]]
# A file's key may have any number of parts, so that these are also URLs of files.
include-path-regex = "/multipart"
checks.unsupported_method.enabled = false
checks.allow_header_conformance.enabled = false
"""
SECONDS = 45
EXAMPLES = 12
"""Of each operation, in each phase."""


@pytest.fixture
def service(tmp_path: Path, migrated_sqlite: Path) -> Iterator[httpx.Client]:
    """A gateway in a process of its own."""
    if importlib.util.find_spec("schemathesis") is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs schemathesis")
        pytest.skip("schemathesis is not installed")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (tmp_path / "reelsmith.db").write_bytes(migrated_sqlite.read_bytes())
    env = {name: value for name, value in os.environ.items() if "REELSMITH" not in name}
    env |= {
        "REELSMITH_DATA_DIR": str(tmp_path),
        "REELSMITH_PORT": str(port),
        "REELSMITH_API_KEYS": KEY,
        "REELSMITH_RUN_WAIT_S": "0.05",
    }
    with (tmp_path / "gateway.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", "serve"], env=env, stdout=log, stderr=log
        )
    headers = {"authorization": f"Key {KEY}"}
    try:
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            wait_for(client, process)
            yield client
    finally:
        process.terminate()
        process.wait(20)


def wait_for(client: httpx.Client, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the gateway did not start")


def ended_request(client: httpx.Client) -> str:
    """A cancelled request: what is asked of it has answers, and its stream ends."""
    request = client.post("/t2v", json={"training_data_url": "https://example.com/a.zip"}).json()
    assert client.put(request["cancel_url"]).status_code == 202
    return str(request["request_id"])


def test_every_operation(service: httpx.Client, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG.format(request_id=ended_request(service)))
    report = tmp_path / "report.json"
    run = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", str(config), "run", f"{service.base_url}/openapi.json"),
            *("--header", f"Authorization: Key {KEY}"),
            *("--max-examples", str(EXAMPLES), "--max-time", str(SECONDS), "--seed", "1"),
            *("--phases", "examples,coverage,fuzzing", "--request-timeout", "15"),
            *("--suppress-health-check", "all", "--warnings", "off", "--no-color"),
            *("--report", "json", "--report-json-path", str(report)),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout[-8_000:] + run.stderr[-2_000:]
    log = (tmp_path / "gateway.log").read_text()
    assert "http.failed" not in log
