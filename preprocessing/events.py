"""Progress as append-only JSON lines: how a library run tells its caller what it is doing.

Each line: ``{"v": 1, "ts": <unix seconds>, "kind": <str>, ...}``. Kinds in use:

    log         level ("INFO", "WARN", "ERROR"), message
    stage       name, state ("start" | "end"), seconds (at the end)
    progress    name, done, total
    step        step, of, loss, loss_video, loss_audio, lr, step_time_s, eta_s
    checkpoint  step, path
    preview     step, index, prompt, path
    trained     model, device, video_tokens, audio_tokens, rank, step_time_s (median), num_previews,
                previews_s (together), preview_tokens, peak_memory_bytes, device_memory_bytes (in
                all), plan (how it was fitted onto the device), startup_s (from the claim to the end
                of the first step), model_was_loaded (before the job): of this run, after its last
                step, for estimates of the next
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"


class EventLog:
    """Appends events to one file; every line is whole before the call returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def emit(self, kind: str, **fields: Any) -> None:
        line = {"v": 1, "ts": round(time.time(), 3), "kind": kind, **fields}
        self._file.write(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n")

    def log(self, message: str, level: str = "INFO") -> None:
        self.emit("log", level=level, message=message)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Bracket a stage; its end carries the seconds it took. A failed stage has no end."""
        self.emit("stage", name=name, state="start")
        started = time.monotonic()
        yield
        self.emit("stage", name=name, state="end", seconds=round(time.monotonic() - started, 3))

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
