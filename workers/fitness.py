"""Whether this worker's machine can do its work at all.

A worker whose model or GPU is gone fails each request within seconds, and so empties a whole queue
before anybody looks. This one takes nothing while it is so, and gives back what it has.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

from app import machine
from app.metrics.counts import UNFIT
from app.settings import Settings

log = structlog.get_logger()

AGAIN_S: Final = 5.0
"""Between two looks at a machine that was found unfit; a look takes some five seconds."""
POLL_S: Final = 0.2


class Fitness:
    """Of the machine for what ``settings`` say: base model, GPUs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looking = threading.Lock()
        self._fit: bool | None = None
        self.lacks: str | None = None
        """What is wrong, in a word (``model``, ``gpu``, ``torch``), when somebody looked last."""

    def look(self) -> bool:
        """Look now, and say in the log what is wrong and what to do."""
        with self._looking:
            found = machine.unfit(self._settings)
            if found is not None:
                log.error("worker.unfit", lacks=found.name, error=found.says, advice=found.advice)
            elif self._fit is False:
                log.info("worker.fit_again")
            self._fit = found is None
            self.lacks = None if found is None else found.name
            UNFIT.set(found is not None)
            return self._fit

    def wait(self, stopping: Callable[[], bool]) -> bool:
        """Whether the machine is fit, perhaps in `AGAIN_S`: whoever gets False hands its wake-up
        on. What was fit once, is taken to be so until the next `look`."""
        if self._known() or self.look():
            return True
        until = time.monotonic() + AGAIN_S
        while time.monotonic() < until:
            if stopping():
                return False
            time.sleep(POLL_S)
        return self.look()

    def _known(self) -> bool | None:
        """After a look that is under way."""
        with self._looking:
            return self._fit
