"""`reelsmith demo`: what it prints, what it leaves, and that nothing goes on running."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.harness import processes_of

pytestmark = [pytest.mark.service, pytest.mark.timeout(400)]


def test_demo(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=350,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("broker: ", "stage times", "encode_latents", "step 100/100", str(out)):
        assert expected in done.stdout
    assert json.loads((out / "report.json").read_text())["verdict"] == "ok"
    for name in ("lora.safetensors", "config.json", "reel.mp4", "metrics.jsonl"):
        assert (out / name).stat().st_size > 0
    assert processes_of(out / "service") == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "demo", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "holds other files" in done.stderr
    assert (tmp_path / "thesis.txt").exists()
