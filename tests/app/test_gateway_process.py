"""The gateway in a process of its own: what it loads, and that it logs JSON lines only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import sys
from fastapi.testclient import TestClient
from app.gateway import create_app
with TestClient(create_app(), base_url="http://127.0.0.1:8000") as client:
    assert client.get("/ready").status_code == 200
    body = {"training_data_url": "https://example.com/a.zip", "trigger_phrase": "a\\u00e9"}
    assert client.post("/t2v", json=body).status_code == 200
    assert client.get("/\\u2028nowhere%0a%7B%7D").status_code == 404
    assert client.post("/nowhere%0a%7B%7D").status_code == 404
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

HEAVY = {"torch", "av", "diffusers", "transformers", "peft", "scenedetect", "cv2", "numpy"}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    folder: Path = tmp_path_factory.mktemp("service")
    env = {name: value for name, value in os.environ.items() if "REELSMITH" not in name}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", START],
        env={**env, "REELSMITH_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_it_starts_without_torch_and_av(started: "subprocess.CompletedProcess[str]") -> None:
    assert started.returncode == 0, started.stderr
    loaded = set(started.stdout.split())
    assert "app" in loaded
    assert not loaded & HEAVY
    assert "workers" not in loaded


def test_its_log_is_json_lines(started: "subprocess.CompletedProcess[str]") -> None:
    lines = [json.loads(line) for line in started.stderr.splitlines()]
    assert {"gateway.started", "http"} <= {line["event"] for line in lines}
    submitted = next(line for line in lines if line.get("path") == "/t2v")
    assert submitted["status"] == 200
    accepted = next(line for line in lines if line["event"] == "request.submitted")
    assert submitted["request_id"] == accepted["request_id"]
