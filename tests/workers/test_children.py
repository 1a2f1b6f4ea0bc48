"""Event files are read line by whole line; the trainer sees no secret of the service."""

import json
from pathlib import Path

import pytest

from preprocessing.events import EventLog
from workers.children import EventTail, TrainerProcess


def test_reads_only_whole_lines_and_each_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert list(tail.read()) == []
    with EventLog(path) as log:
        log.log("one")
        assert [event["message"] for event in tail.read()] == ["one"]
        with path.open("a") as file:
            file.write('{"kind": "log", "message": "ha')
            file.flush()
            assert list(tail.read()) == []
            file.write('lf é"}\n')
        assert [event["message"] for event in tail.read()] == ["half é"]
    assert list(tail.read()) == []


def test_a_line_separator_in_a_message_breaks_no_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with EventLog(path) as log:
        log.log("a\nb\u2028c")
    assert len(path.read_bytes().splitlines()) == 1
    (event,) = EventTail(path).read()
    assert event["message"] == "a\nb\u2028c"
    assert json.dumps(event)


def test_the_trainer_sees_no_secret_of_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked at from outside, in the started process."""
    secrets = {
        "REELSMITH_DATABASE_URL": "postgresql://u:canary-1@db/x",
        "REELSMITH_REDIS_URL": "redis://:canary-2@redis",
        "AWS_SECRET_ACCESS_KEY": "canary-3",
        "SOMETHING_ELSE": "canary-4",
    }
    needed = {
        "CUDA_VISIBLE_DEVICES": "1",
        "HF_TOKEN": "for the base model",
        "REELSMITH_FAILPOINTS": str(tmp_path / "failpoints"),
    }
    for name, value in {**secrets, **needed}.items():
        monkeypatch.setenv(name, value)
    trainer = TrainerProcess(tmp_path / "stderr")
    try:
        seen = Path(f"/proc/{trainer.process.pid}/environ").read_bytes().decode()
    finally:
        trainer.kill()
    variables = dict(entry.split("=", 1) for entry in seen.split("\0") if entry)
    assert needed.items() <= variables.items()
    assert "PATH" in variables
    assert "canary" not in seen
