"""Scratch folders that are never left behind, not even by kill -9.

Each folder is locked by the process that uses it, and the lock dies with the process. So whoever
comes next can tell an abandoned folder from one in use, and removes it.
"""

import fcntl
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK_FILE = ".lock"


@contextmanager
def work_dir(root: Path, label: str) -> Iterator[Path]:
    """A fresh folder below ``root`` for one attempt; removed at the end, whatever the end is."""
    root.mkdir(parents=True, exist_ok=True)
    sweep(root)
    folder = root / f"{label}-{uuid.uuid4().hex[:8]}"
    # Made aside and renamed: a sweeper must never see it without its lock.
    aside = root / f".{folder.name}"
    aside.mkdir()
    with (aside / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        aside.rename(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(root: Path) -> list[str]:
    """Remove folders whose process is gone; returns their names."""
    removed = []
    for folder in root.iterdir():
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        try:
            with (folder / LOCK_FILE).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(folder.name)
        except BlockingIOError:
            continue  # in use
        except FileNotFoundError:
            continue  # its owner is removing it right now
    return removed
