"""Events of a child process on their way to the request's row, log and event table."""

import time
from collections.abc import Iterable
from typing import Any, Final

import structlog
from sqlalchemy.exc import OperationalError

from app.db.engine import Database
from app.requests import lifecycle
from app.requests.lifecycle import Claim, Happened, Log

log = structlog.get_logger()

FLUSH_S: Final = 1.0
"""At most one transaction a second for a child's events: SQLite has one writer."""

KEPT: Final = frozenset({"stage", "step", "checkpoint", "preview"})
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
        self.cancel_requested = False

    def log(self, message: str, level: str = "INFO") -> None:
        self._logs.append(Log(message, level, ts=time.time()))

    def progress(self, **fields: Any) -> None:
        self._progress |= fields
        self._changed = True

    def feed(self, events: Iterable[dict[str, Any]]) -> None:
        """Take in events as `preprocessing.events` writes them, and flush when it is time."""
        for event in events:
            kind, ts = event["kind"], event["ts"]
            data = {k: v for k, v in event.items() if k not in ("v", "ts", "kind", "path")}
            if kind == "log":
                self._logs.append(Log(data["message"], data["level"], ts=ts))
            elif kind == "stage":
                self.progress(stage=data["name"])
            elif kind == "progress":
                self.progress(stage=data["name"], done=data["done"], total=data["total"])
            elif kind == "step":
                kept = ("step", "of", "loss", "lr", "step_time_s", "eta_s")
                self.progress(stage="train", **{k: data.get(k) for k in kept})
            if kind in KEPT:
                self._events.append(Happened(kind, data, ts=ts))
        if time.monotonic() - self._flushed_at < FLUSH_S:
            return
        try:
            self.flush()
        except OperationalError as error:
            # Kept and written with the next batch; the lease decides how long that may go on.
            log.warning("forward.database_away", error=str(error))

    def flush(self) -> None:
        self._flushed_at = time.monotonic()
        if not (self._changed or self._logs or self._events):
            return
        with self._database.write() as session:
            answer = lifecycle.progress(
                session,
                self._claim,
                progress=self._progress,
                logs=self._logs,
                events=self._events,
            )
        self._logs, self._events, self._changed = [], [], False
        self.cancel_requested = answer.cancel_requested
