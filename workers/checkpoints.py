"""Checkpoints in the store: put while a training runs, fetched when another attempt goes on.

{request}/checkpoints/{step:06d}-{attempt}/...       with the trainer's manifest written last
"""

import contextvars
import os
import queue
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from app.storage import Storage
from app.storage.errors import ObjectDamaged, ObjectMissing
from trainer.job import CHECKPOINT_MANIFEST

log = structlog.get_logger()

Work = Callable[[], None]

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
    """Stores what a training makes on the way, in a thread: a slow store must not hold it up.

    Of the checkpoints that wait, only the newest is worth sending. A failed upload costs nothing
    but the chance to resume there, or to see a preview early; it is in the reel all the same.
    """

    def __init__(
        self, store: CheckpointStore, attempt: int, lost: Callable[[], bool], held: Path
    ) -> None:
        """Once ``lost`` is true, nothing more is begun: the winner may have cleaned up already.
        In ``held``, a folder on the trainer's disk, lies what is to be sent."""
        self._store = store
        self._attempt = attempt
        self._lost = lost
        self._held = held
        self._num_held = 0
        self._next: tuple[int, Path] | None = None
        """The newest checkpoint that waits, as step and folder."""
        self._next_lock = threading.Lock()
        self._waiting: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        # In a copy of our context, so that its lines of log name the request, too.
        run = partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="uploads", daemon=True)
        self._thread.start()

    def put_checkpoint(self, step: int, folder: Path) -> None:
        """Store it, unless a newer one comes before its turn.

        The trainer keeps its last two only, and may save faster than a slow store takes them. So
        what waits here has links of its own to the files; and only one waits, or a store that is
        away would fill the disk.
        """
        self._num_held += 1
        held = self._held / f"{folder.name}-{self._num_held}"
        try:
            shutil.copytree(folder, held, copy_function=os.link)
        except OSError as error:  # two newer ones have come since we were told
            log.warning("checkpoint.gone", step=step, error=repr(error))
            return
        with self._next_lock:
            older, self._next = self._next, (step, held)
        if older is None:
            self._waiting.put(self._store_next)
        else:  # its turn is this one's
            shutil.rmtree(older[1])

    def _store_next(self) -> None:
        with self._next_lock:
            assert self._next is not None
            (step, held), self._next = self._next, None
        try:
            self._store.put(held, step, self._attempt)
            log.info("checkpoint.stored", step=step)
        finally:
            shutil.rmtree(held)

    def put(self, work: Work) -> None:
        """Do ``work``, which stores something, after what waits."""
        self._waiting.put(work)

    def close(self) -> None:
        """Finish what waits. Called before the job directory goes away."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            if self._lost():
                continue
            try:
                work()
            except Exception as error:  # whatever it was, the training goes on without it
                log.warning("upload.failed", error=repr(error))
