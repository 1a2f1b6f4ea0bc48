"""Child processes for the media work: one per core, and a crash costs one clip, not the run."""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from typing import Any, Self, TypeVar

from preprocessing.confinement import confine
from preprocessing.errors import MediaError
from preprocessing.names import short

MAX_TASK_S = 3600
"""Seconds for one clip's probe, scenes or fit: a two-hour film in scene detection takes a third.
Of the clock, and again of the processor."""

MAX_ADDRESS_SPACE_BYTES = 8 * 2**30
"""Bytes of address space a child may map: twice what decoding 8K takes with all its references."""

MAX_FILE_BYTES = 4 * 2**30
"""Bytes of one file a child writes: ten times the largest sample, 121 frames of 960x960."""

MAX_OPEN_FILES = 256
"""File descriptors of a child: the clip, its output, the pipes, and room for libraries."""

T = TypeVar("T")
Task = tuple[Any, ...]
"""Arguments of one call; the first is the clip's name, for messages."""


class Pool:
    """Runs functions in spawned processes.

    A `MediaError` is an answer and comes back as a value. A child that dies (a decoder's crash, the
    out-of-memory killer) breaks a pool: what was under way is then run again, each in a process of
    its own, and a task that kills its process a second time is answered with a `MediaError`.
    Children end with their parent, however it ends.

    Children have limits, no network, and of the file system the libraries and ``folder``, where
    everything lies that they read and write, and ``readable``; as far as the system lets them be
    confined (`confinement.py`). Without ``folder``, all files are in reach.

    As ever with spawned processes, a script that calls this needs ``if __name__ == "__main__":``.
    """

    def __init__(
        self, processes: int, folder: Path | None = None, readable: Sequence[Path] = ()
    ) -> None:
        # Of use to nobody beside one process per core, and a process with threads can't leave for
        # a user namespace.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        self._processes = processes
        self._confined = (folder, tuple(readable))
        self._executor = self._new_executor(processes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def run(
        self, function: Callable[..., T], tasks: Sequence[Task]
    ) -> Iterator[tuple[int, T | MediaError]]:
        """Call ``function(*task)`` for every task; yield its index and answer as each is done.

        An exception other than `MediaError` is a fault of ours and is raised here.
        """
        unfinished = set(range(len(tasks)))
        while unfinished:
            try:
                futures = {
                    self._executor.submit(_answer, function, tasks[index]): index
                    for index in sorted(unfinished)
                }
                for future in as_completed(futures):
                    answer = future.result()
                    unfinished.remove(futures[future])
                    yield futures[future], answer
            except BrokenProcessPool:
                self._executor.shutdown(cancel_futures=True)
                self._executor = self._new_executor(self._processes)
                # Tasks begin in order: the culprit is among the first of those without an answer,
                # as many as can be at work or have an answer under way.
                for index in sorted(unfinished)[: 2 * self._processes + 1]:
                    unfinished.remove(index)
                    yield index, self._alone(function, tasks[index])

    def _new_executor(self, processes: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            processes, mp_context=context, initializer=_begin_child, initargs=self._confined
        )

    def _alone(self, function: Callable[..., T], task: Task) -> T | MediaError:
        with self._new_executor(1) as executor:
            try:
                return executor.submit(_answer, function, task).result()
            except BrokenProcessPool:
                return MediaError(
                    f"{short(task[0])} can't be decoded: the decoder crashed, ran out of memory or "
                    f"took more than {MAX_TASK_S // 60} minutes. Convert it to H.264 in MP4.",
                    reason="crashed",
                )


def available_cores() -> int:
    """Cores this process may use; a container's share where the system tells it."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _answer(function: Callable[..., T], task: Task) -> T | MediaError:
    faulthandler.dump_traceback_later(MAX_TASK_S, exit=True)
    _limit_cpu(MAX_TASK_S)
    try:
        return function(*task)
    except MediaError as error:
        return error
    except MemoryError:
        return MediaError(
            f"{short(task[0])} needs too much memory to decode. Send it in a smaller size.",
            reason="too_large",
        )
    finally:
        faulthandler.cancel_dump_traceback_later()


def _begin_child(folder: Path | None, readable: Sequence[Path]) -> None:
    """Limits for what a hostile file can do, and an end when the parent is gone."""
    confine(folder, readable)
    _lower(resource.RLIMIT_AS, MAX_ADDRESS_SPACE_BYTES)
    _lower(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    _lower(resource.RLIMIT_CORE, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _lower(limit: int, value: int) -> None:
    """Lower a limit of this process; macOS knows some of them and refuses to set them."""
    soft, hard = resource.getrlimit(limit)
    if soft == resource.RLIM_INFINITY or value < soft:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (value, hard))


def _limit_cpu(seconds: int) -> None:
    """From now on: the kernel kills this process when it has computed so much longer."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    until = int(time.process_time()) + seconds
    resource.setrlimit(
        resource.RLIMIT_CPU, (until if hard == resource.RLIM_INFINITY else min(until, hard), hard)
    )


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only children run this"
    connection.wait([parent.sentinel])
    os._exit(1)
