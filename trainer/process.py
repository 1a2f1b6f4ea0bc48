"""How a trainer process ends when it is told to. No torch."""

import signal
from pathlib import Path
from types import FrameType

from trainer.job import Control, JobDir


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
