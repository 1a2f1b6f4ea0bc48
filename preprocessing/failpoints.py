"""Places where a test of faults may end, stop, delay or fail a process. Off in production.

``REELSMITH_FAILPOINTS`` names a file of lines ``PLACE ACTION [TIMES]``, such as
``complete.before_commit kill 1``. Whoever reaches an armed place uses up one of its times, under a
lock, and acts; so a file can be changed while the service runs, and ``1`` means one process in all.
What fired is appended to ``{file}.fired`` as ``PLACE ACTION PID``. Without the variable a place
costs one comparison.

    kill        SIGKILL of this process
    killgroup   SIGKILL of its process group: a worker with its pool, as when a machine goes away
    stop        SIGSTOP of its process group
    raise       `FailpointError`
    enospc      the error of a full disk
    sleep:S     S seconds
"""

import errno
import fcntl
import os
import signal
import time
from pathlib import Path
from typing import Final

FILE: Final = "REELSMITH_FAILPOINTS"
_file: Final = os.environ.get(FILE)


class FailpointError(Exception):
    """Raised where a test wants an error nobody foresaw."""


def reach(place: str) -> None:
    """Do what is armed at ``place``, if anything is."""
    if _file is not None and (action := _take(Path(_file), place)) is not None:
        _act(action, place)


def _take(file: Path, place: str) -> str | None:
    """The action armed at ``place``, with one of its times used up."""
    try:
        opened = file.open("r+")
    except FileNotFoundError:
        return None
    with opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        lines = opened.read().splitlines()
        for number, line in enumerate(lines):
            name, action, *times = line.split()
            left = int(times[0]) if times else 1
            if name != place or left < 1:
                continue
            lines[number] = f"{name} {action} {left - 1}"
            opened.seek(0)
            opened.truncate()
            opened.write("\n".join(lines) + "\n")
            opened.flush()
            with file.with_name(file.name + ".fired").open("a") as fired:
                fired.write(f"{place} {action} {os.getpid()}\n")
            return action
    return None


def _act(action: str, place: str) -> None:
    name, _, value = action.partition(":")
    match name:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "killgroup":
            os.killpg(os.getpgrp(), signal.SIGKILL)
        case "stop":
            os.killpg(os.getpgrp(), signal.SIGSTOP)
        case "raise":
            raise FailpointError(place)
        case "enospc":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)
        case "sleep":
            time.sleep(float(value))
        case _:
            raise ValueError(f"{place}: no such action: {action}")
