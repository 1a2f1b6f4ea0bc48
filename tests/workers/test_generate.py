"""What a generation's reply carries: its video, and a seed that no attempt changes."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.modes.generation import MAX_INLINE_BYTES, MAX_SEED
from app.requests.files import signed
from tests.app.conftest import row
from tests.workers.test_loras import attempt
from workers.children import EventTail
from workers.failures import Failure
from workers.generate import SamplingEvents, inline, seed_of
from workers.runtime import Runtime

VIDEO = {"key": "requests/r/video.mp4", "file_name": "video.mp4", "content_type": "video/mp4"}


def progress(ts: float, name: str, done: int, total: int) -> dict[str, Any]:
    return {"ts": ts, "kind": "progress", "name": name, "done": done, "total": total}


def stage(ts: float, name: str, state: str) -> dict[str, Any]:
    seconds = {"seconds": 1.0} if state == "end" else {}
    return {"ts": ts, "kind": "stage", "name": name, "state": state, **seconds}


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
    one = SimpleNamespace(forward=SimpleNamespace(feed=told.extend))
    path = tmp_path / "events.jsonl"
    lines = [
        stage(100.0, "generate", "start"),
        progress(102.0, "generate", 1, 8),
        progress(105.0, "generate", 2, 8),
        progress(106.0, "write_video", 8, 9),
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    SamplingEvents(cast(Any, one), EventTail(path)).forward()
    assert (told[0], told[3]) == (lines[0], lines[3])
    steps = [(e["kind"], e["step"], e["of"], e["step_time_s"], e["eta_s"]) for e in told[1:3]]
    assert steps == [("step", 1, 8, 2.0, 14.0), ("step", 2, 8, 3.0, 15.0)]


def test_the_video_is_written_after_the_steps(runtime: Runtime, tmp_path: Path) -> None:
    """Progress then counts frames, and no stage shows another's counts."""
    path = tmp_path / "events.jsonl"
    shown = []
    with attempt(runtime, tmp_path / "attempt") as one:
        events = SamplingEvents(one, EventTail(path))
        for lines in (
            [progress(100.0, "encode_text", 2, 2), stage(101.0, "load_transformer", "start")],
            [stage(102.0, "generate", "start"), progress(104.0, "generate", 8, 8)],
            [stage(104.0, "generate", "end"), stage(104.0, "write_video", "start")],
            [progress(105.0, "write_video", 8, 12)],
        ):
            with path.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            events.forward()
            one.forward.feed((), at_once=True)
            shown.append(row(runtime.database, one.request_id).progress)
    assert shown == [
        {"stage": "load_transformer"},
        {"stage": "generate", "step": 8, "of": 8, "step_time_s": 2.0, "eta_s": 0.0},
        {"stage": "write_video"},
        {"stage": "write_video", "done": 8, "total": 12},
    ]
