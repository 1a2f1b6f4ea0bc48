"""`reelsmith submit` as a process of its own: from a folder of clips to the files of its LoRA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.conftest import real_clip
from tests.service.harness import SMALL, Stack

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]


def reelsmith(*args: object, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, args)],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_a_folder_becomes_a_lora(running: Stack, tmp_path: Path) -> None:
    folder, out, inputs = tmp_path / "clips", tmp_path / "out", tmp_path / "input.json"
    folder.mkdir()
    (folder / "bunny.mp4").symlink_to(real_clip("bigbuckbunny.mp4"))
    (folder / "bunny.txt").write_text("a rabbit in a meadow")
    (folder / ".hidden.mp4").write_bytes(b"no clip")
    inputs.write_text(json.dumps(SMALL))
    env = {"REELSMITH_URL": running.service.url, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = reelsmith(
        *("submit", "extend-suffix", folder, "--input", inputs, "--download", out),
        *("-F", "trigger_phrase=xyz", "--prompt", "xyz at night"),
        *("--video", folder / "bunny.mp4"),
        **env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("1 video, 1 caption", "uploading clips.zip", "step 100/100", "preview at"):
        assert said in done.stderr
    assert "billed: 100 units" in done.stdout
    with safe_open(out / "lora.safetensors", "pt") as tensors:
        assert tensors.metadata()["rank"] == "8"
    assert json.loads((out / "config.json").read_text())["trigger_phrase"] == "xyz"
    assert json.loads((out / "report.json").read_text())["totals"]["used"] == 1
    assert list((out / "previews").glob("step-*.mp4"))

    request_id = json.loads((out / "request.json").read_text())["request_id"]
    again = reelsmith("result", request_id, "--download", out, **env)
    assert again.returncode == 0, again.stderr
    log = reelsmith("logs", request_id, **env).stdout
    assert "step 100/100" in log

    (folder / "bunny.mp4").unlink()
    (folder / "broken.mp4").write_bytes(b"no clip at all")
    failed = reelsmith("submit", "t2v", folder, "--input", inputs, **env)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "training_data_url: " in failed.stderr
