"""What a generation's reply carries: its video, and a seed that no attempt changes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.modes.generation import MAX_INLINE_BYTES, MAX_SEED
from app.requests.files import signed
from workers.children import EventTail
from workers.failures import Failure
from workers.generate import SamplingEvents, inline, seed_of
from workers.runtime import Runtime

VIDEO = {"key": "requests/r/video.mp4", "file_name": "video.mp4", "content_type": "video/mp4"}


def test_a_small_video_is_in_the_reply(runtime: Runtime, tmp_path: Any) -> None:
    (tmp_path / "video.mp4").write_bytes(b"\x00\xff moov")
    runtime.storage.put_file(VIDEO["key"], tmp_path / "video.mp4")
    body = {"video": inline({**VIDEO, "file_size": 7}), "seed": 3}
    assert signed(runtime.storage, body) == {
        "video": {
            "url": "data:video/mp4;base64,AP8gbW9vdg==",
            "file_name": "video.mp4",
            "content_type": "video/mp4",
            "file_size": 7,
        },
        "seed": 3,
    }


def test_a_large_one_is_beside_the_error(runtime: Runtime) -> None:
    """What to change, and where the file is that was made."""
    with pytest.raises(Failure) as failed:
        inline({**VIDEO, "file_size": MAX_INLINE_BYTES + 1})
    failure = failed.value
    assert "at most 20 MB in the reply. Turn sync_mode off" in failure.error
    assert (failure.status, failure.retryable, failure.field) == (422, False, "sync_mode")
    body = signed(runtime.storage, failure.body)
    (detail,) = body["detail"]
    assert (detail["loc"], detail["type"]) == (["body", "sync_mode"], "file_too_large")
    assert detail["ctx"] == {"max_size": MAX_INLINE_BYTES}
    assert body["video"]["url"].startswith("http")


def test_a_seed_is_the_same_at_every_attempt() -> None:
    ids = [f"00000000-0000-4000-8000-{number:012x}" for number in (0, 1, 2**32, 2**48 - 1)]
    seeds = [seed_of(request_id) for request_id in ids]
    assert seeds == [seed_of(request_id) for request_id in ids] == [0, 1, 0, 2**32 - 1]
    assert max(seeds) <= MAX_SEED


def test_sampling_steps_are_told_as_steps(tmp_path: Path) -> None:
    """With how long they take; everything else of the trainer's is as it was."""
    told: list[dict[str, Any]] = []
    attempt = SimpleNamespace(forward=SimpleNamespace(feed=told.extend))
    path = tmp_path / "events.jsonl"
    lines = [
        {"ts": 100.0, "kind": "stage", "name": "generate", "state": "start"},
        {"ts": 102.0, "kind": "progress", "name": "generate", "done": 1, "total": 8},
        {"ts": 105.0, "kind": "progress", "name": "generate", "done": 2, "total": 8},
        {"ts": 106.0, "kind": "progress", "name": "write_video", "done": 1, "total": 9},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    SamplingEvents(cast(Any, attempt), EventTail(path)).forward()
    assert (told[0], told[3]) == (lines[0], lines[3])
    steps = [(e["kind"], e["step"], e["of"], e["step_time_s"], e["eta_s"]) for e in told[1:3]]
    assert steps == [("step", 1, 8, 2.0, 14.0), ("step", 2, 8, 3.0, 15.0)]
