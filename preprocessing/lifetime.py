"""A child that must not outlive the process that started it."""

import ctypes
import os
import signal
import sys
from typing import Final

PARENT_PID: Final = "REELSMITH_PARENT_PID"
"""Set by a parent whose death must be its children's; a run by hand has none."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent(parent_pid: int | None = None, number: signal.Signals = signal.SIGKILL) -> None:
    """Ask Linux to send ``number`` to this process when its parent dies, kill -9 included;
    elsewhere a no-op. Linux' parent is the thread that started it.

    Called first thing in a child, or between fork and exec (``preexec_fn``) for a program of
    somebody else's. ``parent_pid`` defaults to what the environment names, and without either
    nothing happens. A parent that died before the call is noticed too.
    """
    pid = parent_pid or int(os.environ.get(PARENT_PID, "0"))
    if not pid or _libc is None:
        return
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != pid:
        os._exit(1)
