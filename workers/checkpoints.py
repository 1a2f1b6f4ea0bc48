"""Checkpoints in the store: put while a training runs, fetched when another attempt goes on.

{request}/checkpoints/{step:06d}-{attempt}/...       with the trainer's manifest written last
"""

import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from app.storage import Storage
from app.storage.errors import ObjectDamaged, ObjectMissing
from trainer.job import CHECKPOINT_MANIFEST

log = structlog.get_logger()

KEPT: Final = 2
"""In the store as on disk: the newest, and one before it should that be damaged."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint in the store."""

    step: int
    attempt: int
    prefix: str


class CheckpointStore:
    """One request's checkpoints."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage = storage
        self._prefix = prefix

    def put(self, folder: Path, step: int, attempt: int) -> None:
        """Store a finished checkpoint directory and drop those before the last two."""
        target = f"{self._prefix}/{step:06d}-{attempt}"
        self._storage.put_tree(target, folder, last=CHECKPOINT_MANIFEST)
        for old in self.stored()[KEPT:]:
            self._storage.delete_tree(old.prefix)

    def stored(self) -> list[Stored]:
        """Whole checkpoints, newest first."""
        found = []
        for key in self._storage.list_keys(self._prefix):
            name, _, file = key.removeprefix(f"{self._prefix}/").partition("/")
            if file == CHECKPOINT_MANIFEST:
                step, _, attempt = name.partition("-")
                found.append(Stored(int(step), int(attempt), f"{self._prefix}/{name}"))
        return sorted(found, key=lambda stored: (stored.step, stored.attempt), reverse=True)

    def fetch_newest(self, folder: Path) -> Path | None:
        """Bring the newest whole checkpoint into ``folder``; a damaged one is passed over."""
        for stored in self.stored():
            target = folder / f"step-{stored.step:06d}"
            try:
                self._storage.fetch_tree(stored.prefix, target, last=CHECKPOINT_MANIFEST)
            except (ObjectDamaged, ObjectMissing) as error:
                log.warning("checkpoint.unusable", step=stored.step, error=str(error))
                continue
            return target
        return None

    def delete_all(self) -> None:
        self._storage.delete_tree(self._prefix)


class Uploader:
    """Stores checkpoints from a thread: a slow store must not hold up the events of a training.

    Only the newest waiting one is worth sending. A failed upload costs nothing but the chance to
    resume there; the next one tries again.
    """

    def __init__(self, store: CheckpointStore, attempt: int) -> None:
        self._store = store
        self._attempt = attempt
        self._waiting: queue.SimpleQueue[tuple[int, Path] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def put(self, step: int, folder: Path) -> None:
        self._waiting.put((step, folder))

    def close(self) -> None:
        """Finish what waits. Called before the job directory goes away."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            closing = False
            while not self._waiting.empty():
                newer = self._waiting.get()
                if newer is None:
                    closing = True
                    break
                item = newer
            step, folder = item
            try:
                self._store.put(folder, step, self._attempt)
                log.info("checkpoint.stored", step=step)
            except Exception as error:  # whatever it was, the training goes on without it
                log.warning("checkpoint.not_stored", step=step, error=repr(error))
            if closing:
                return
