"""What jobs say while they run: lines in a file that survive whatever kills them."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Final

MARKS: Final = "REELSMITH_BENCH_MARKS"
JOB_S: Final = "REELSMITH_BENCH_JOB_S"


def mark(what: str, job: str) -> None:
    """One line, in one write."""
    line = f"{what} {job} {time.time():.3f}\n".encode()
    descriptor = os.open(os.environ[MARKS], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line)
    os.close(descriptor)


def count(path: Path) -> dict[str, Counter[str]]:
    """How often each job said ``start`` and ``done``."""
    found: dict[str, Counter[str]] = {"start": Counter(), "done": Counter()}
    for line in path.read_text().splitlines() if path.exists() else ():
        what, job, _ = line.split()
        found[what][job] += 1
    return found
