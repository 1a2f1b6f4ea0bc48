"""A worker whose model is gone: it takes nothing, loses nothing, and goes on once it is back."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.dev import free_port
from tests.service.harness import Stack, stack, trainer_pid, upload
from tests.service.test_generation import SMALL
from tests.trainer.loras import metadata, trained
from trainer.adapter import adapter_state
from trainer.lora_file import save_lora
from trainer.model import BaseModel

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]


def lacks(running: Stack) -> list[str | None]:
    """What the GPU workers that the console shows say they lack."""
    workers = running.http.get("/overview").json()["workers"]
    return [worker["lacks"] for worker in workers if worker["queue"] == "gpu"]


def test_a_model_that_comes_and_goes(tmp_path: Path, bunny: Path) -> None:
    model, aside = tmp_path / "model", tmp_path / "aside"
    tiny = BaseModel.open("tiny", tmp_path / "cache", "cpu")
    lora = tmp_path / "lora.safetensors"
    save_lora(lora, adapter_state(trained(tiny, with_audio=False)), metadata(with_audio=False))
    shutil.copytree(tiny.folder, aside)
    with stack(tmp_path / "data", "auto", str(model)) as running:
        body = {
            **SMALL,
            "video_url": upload(running.http, bunny),
            "loras": [{"path": upload(running.http, lora)}],
        }

        def generate() -> dict[str, str]:
            answer = running.http.post("/outpaint/lora", json=body)
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        first = generate()
        prepared = [("prepare", "advanced")]
        running.until(lambda: running.attempts(first) == prepared, 60.0, first)
        running.until(lambda: lacks(running) == ["model"], 60.0, first)
        assert running.status(first)["status"] == "IN_QUEUE"
        aside.rename(model)
        assert running.wait(first).status_code == 200
        assert running.attempts(first) == [("prepare", "advanced"), ("train", "completed")]

        # The trainer holds the model in memory; another one would have to read it.
        os.kill(trainer_pid(running.gpu_worker), signal.SIGKILL)
        model.rename(aside)
        second = generate()
        running.until(lambda: "Given back" in running.log(second), 60.0, second)
        running.until(lambda: lacks(running) == ["model"], 30.0, second)
        assert str(tmp_path) not in running.log(second)
        assert running.status(second)["status"] == "IN_QUEUE"
        ends = running.attempts(second)[1:]
        assert ends
        assert {outcome for _stage, outcome in ends} <= {"released", None}, "no attempt is used up"
        assert running.http.put(second["cancel_url"]).status_code == 202
        assert running.wait(second).status_code == 499


def test_up_says_so_before_anything_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "up"],
        env={
            **os.environ,
            "REELSMITH_DATA_DIR": str(tmp_path / "data"),
            "REELSMITH_PORT": str(free_port()),
            "REELSMITH_MODEL": "/models/nowhere",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "/models/nowhere is no folder here" in done.stderr
    assert "REELSMITH_MODEL" in done.stderr
    assert not (tmp_path / "data" / "logs").exists()
