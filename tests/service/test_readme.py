"""The README's examples, as they are printed there, against the real service."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.service.harness import SMALL, Stack

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]

README = (Path(__file__).parents[2] / "README.md").read_text()


def example(language: str, containing: str) -> str:
    """The one code block of that language with that text in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return str(found)


def fields() -> str:
    """Makes the example's training small enough for a test."""
    return json.dumps(SMALL)[1:-1]


def test_fal_client_example(running: Stack, clips: Path, tmp_path: Path) -> None:
    """fal's own Python client uploads, submits, follows and reads the result."""
    code = example("python", "fal_client")
    code = code.replace("http://127.0.0.1:8000", running.service.url)
    code = code.replace('"number_of_steps": 1000', fields())
    shutil.copy(clips, tmp_path / "clips.zip")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "Completed" in done.stdout
    url = done.stdout.strip().splitlines()[-1]
    assert running.http.get(url).status_code == 200
    assert "lora.safetensors" in url


def test_curl_example(running: Stack, clips: Path, tmp_path: Path) -> None:
    """The shell lines, one after the other, with the answers put where the text says."""
    shell = example("sh", "storage/upload/initiate")
    shell = re.sub(r"^zip .*$", "", shell, flags=re.MULTILINE)
    shell = re.sub(r"^#.*$", "", shell, flags=re.MULTILINE)
    shell = shell.replace("localhost:8000", running.service.url.removeprefix("http://"))
    shell = shell.replace('"number_of_steps": 1000', fields())
    initiate, _, rest = shell.partition("curl -s -T")
    upload, _, rest = ("curl -s -T" + rest).partition("\n")
    submit, _, look = rest.partition('curl -s "$STATUS_URL')
    script = "\n".join(
        [
            "set -eu",
            read_json(initiate, UPLOAD_URL="upload_url", FILE_URL="file_url"),
            upload,
            read_json(submit, STATUS_URL="status_url", RESPONSE_URL="response_url"),
            'until curl -s "$STATUS_URL" | grep -q COMPLETED; do sleep 0.5; done',
            'curl -s "$STATUS_URL' + look,
        ]
    )
    shutil.copy(clips, tmp_path / "clips.zip")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.replace('": ', '":')
    for expected in ('"COMPLETED"', '"lora_file"', '"verdict":"ok"', '"loss"'):
        assert expected in answers


def read_json(command: str, **names: str) -> str:
    """Shell that runs ``command`` and puts keys of its JSON answer into variables."""
    python = f'"{sys.executable}" -c \'import json,sys; print(json.load(sys.stdin)["%s"])\''
    lines = [f"ANSWER=$({command.strip()})"]
    lines += [f'{name}=$(echo "$ANSWER" | {python % key})' for name, key in names.items()]
    return "\n".join(lines)
