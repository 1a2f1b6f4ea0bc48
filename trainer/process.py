"""How a trainer process begins, and how it ends when it is told to. No torch."""

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from trainer.job import Control, JobDir


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of a process of its own. They make 435,000 objects, which stay: to look
    for garbage among them takes a second of five, and a quarter of one at each collection later."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


class ReleaseOnSigterm:
    """While the block runs, SIGTERM asks the job to save a checkpoint and stop."""

    def __init__(self, job_dir: Path) -> None:
        self.received = False
        self._directory = JobDir(job_dir)

    def __enter__(self) -> "ReleaseOnSigterm":
        self._before = signal.signal(signal.SIGTERM, self._release)
        return self

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _release(self, signum: int, frame: FrameType | None) -> None:
        self.received = True
        if self._directory.told() is None:
            self._directory.tell(Control.RELEASE)
