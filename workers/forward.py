"""Events of a child process on their way to the request's row, log and event table."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import structlog
from sqlalchemy.exc import OperationalError

from app.db.engine import Database
from app.metrics.counts import STAGE_TIME, STEP_TIME
from app.requests import lifecycle
from app.requests.lifecycle import Claim, Happened, Log
from trainer.spec import Wish

log = structlog.get_logger()

FLUSH_S: Final = 1.0
"""At most one transaction a second for a child's events: SQLite has one writer."""

STEP_LINE_S: Final = 5.0
"""Between two log lines about steps; every step's loss is in the events."""

KEPT: Final = frozenset(
    {"stage", "step", "checkpoint", "preview", "granted", "trained", "generated"}
)
"""Kinds that go into the event table; `progress` only moves the row's progress."""


class Forwarder:
    """Collects and writes in batches, under the claim's token. Raises `LeaseLost` when it is gone.

    A checkpoint's and a preview's path is a matter of the job directory and stays behind.
    """

    def __init__(self, database: Database, claim: Claim, stage: str) -> None:
        self._database = database
        self._claim = claim
        self._progress: dict[str, Any] = {"stage": stage}
        self._logs: list[Log] = []
        self._events: list[Happened] = []
        self._changed = True
        self._flushed_at = 0.0
        self._step_said_at = 0.0
        self._granted: set[Wish] = set()
        self.cancel_requested = False
        self.wishes: Mapping[Wish, float] = {}

    def log(self, message: str, level: str = "INFO") -> None:
        self._logs.append(Log(message, level, ts=time.time()))

    def progress(self, **fields: Any) -> None:
        if fields.get("stage", self._progress["stage"]) != self._progress["stage"]:
            self._forget("done", "total")  # they were the other stage's
        self._progress |= fields
        self._changed = True

    def end_steps(self) -> None:
        """What follows is not counted in steps."""
        self._forget("step", "of", "step_time_s", "eta_s")

    def _forget(self, *fields: str) -> None:
        for name in fields:
            self._progress.pop(name, None)
        self._changed = True

    def feed(self, events: Iterable[dict[str, Any]], *, at_once: bool = False) -> None:
        """Take in events as `preprocessing.events` writes them, and flush when it is time."""
        for event in events:
            kind, ts = event["kind"], event["ts"]
            data = {k: v for k, v in event.items() if k not in ("v", "ts", "kind", "path")}
            if kind == "log":
                if data["level"] == "ERROR":
                    continue  # a refusal, which will be the request's own last line
                self._logs.append(Log(data["message"], data["level"], ts=ts))
            elif kind == "stage":
                self.progress(stage=data["name"])
                if data["state"] == "end":
                    self._logs.append(Log(f"{data['name']}: {data['seconds']:.1f} s", ts=ts))
                    STAGE_TIME.labels(data["name"]).observe(data["seconds"])
            elif kind == "progress":
                self.progress(stage=data["name"], done=data["done"], total=data["total"])
            elif kind == "step":
                kept = ("step", "of", "loss", "lr", "step_time_s", "eta_s")
                stage = data.pop("stage", "train")
                self.progress(stage=stage, **{k: data[k] for k in kept if k in data})
                if stage == "train":
                    STEP_TIME.observe(data["step_time_s"])
                self._say_step(data, ts)
            elif kind == "preview":
                self._logs.append(Log(f"Preview at step {data['step']}: {data['prompt']}", ts=ts))
            elif kind == "granted":
                self._granted.add(Wish(data["wish"]))
            if kind in KEPT:
                self._events.append(Happened(kind, data, ts=ts))
        if not at_once and time.monotonic() - self._flushed_at < FLUSH_S:
            return
        try:
            self._flush()
        except OperationalError as error:
            # Kept and written with the next batch; the lease decides how long that may go on.
            log.warning("forward.database_away", error=str(error))

    def _say_step(self, data: dict[str, Any], ts: float) -> None:
        """A log line now and then, for whoever follows the log and not the events."""
        if ts - self._step_said_at < STEP_LINE_S and data["step"] < data["of"]:
            return
        self._step_said_at = ts
        parts = [f"step {data['step']}/{data['of']}"]
        if "loss" in data:  # sampling has none
            parts.append(f"loss {data['loss']:.4f}  lr {data['lr']:.2e}")
        parts.append(f"{data['step_time_s']:.2f} s/step  {duration(data['eta_s'])} left")
        self._logs.append(Log("  ".join(parts), ts=ts))

    def _flush(self) -> None:
        self._flushed_at = time.monotonic()
        if not (self._changed or self._logs or self._events):  # a grant is an event, too
            return
        with self._database.write() as session:
            answer = lifecycle.progress(
                session,
                self._claim,
                progress=self._progress,
                logs=self._logs,
                events=self._events,
                granted=self._granted,
            )
        self._logs, self._events, self._changed = [], [], False
        self._granted.clear()
        self.cancel_requested = answer.cancel_requested
        self.wishes = answer.wishes


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
