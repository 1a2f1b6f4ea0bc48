"""Children that end with the process that started them, however it ends."""

import ctypes
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def end_with_parent() -> None:
    """In the child, before it is another program (``preexec_fn``): SIGTERM for it when the thread
    that started it is gone, so only for children of a main thread. Linux alone has this."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
