"""What each case takes: seconds, and the peak of resident memory of the process that bears it.

Linux keeps a peak per process (``VmHWM``) and forgets it on request, so the peak of one case can
be told from that of the one before. Elsewhere the peak is not known (0).
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.hostile.catalogue import GROUPS, number_of

FILE: Final = "REELSMITH_HOSTILE_COSTS"
"""Environment variable: where a run notes its costs, one JSON line each."""
MEBIBYTE: Final = 2**20


@dataclass(frozen=True)
class Cost:
    case: str
    seconds: float
    peak_bytes: int


def forget_peak(pid: int | str = "self") -> None:
    """Let ``VmHWM`` begin anew at what is resident now."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int | str = "self") -> int:
    """Resident memory at its highest since `forget_peak`; 0 for a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


class Meter:
    """Measures one test. ``bearers`` are the processes that do the work, if not this one."""

    def __init__(self, case: str) -> None:
        self.case = case
        self._bearers: list[int | str] = ["self"]
        self._measured: list[tuple[float, int]] = []

    def borne_by(self, *pids: int) -> None:
        self._bearers = list(pids)
        for pid in pids:
            forget_peak(pid)

    def measured(self, seconds: float, peak: int) -> None:
        """By somebody else: a child that handled many cases."""
        self._measured.append((seconds, peak))

    @contextmanager
    def running(self) -> Iterator[None]:
        forget_peak()
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        peaks = [peak_bytes(pid) for pid in self._bearers]
        spent = self._measured or [(seconds, max(peaks))]
        note(Cost(self.case, max(s for s, _ in spent), max(peak for _, peak in spent)))


def note(cost: Cost) -> None:
    """Append it to the file of this run, if the run wants to know."""
    path = os.environ.get(FILE)
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(cost)) + "\n")


def table(path: Path) -> str:
    """Of all costs that were noted: per group the dearest cases, in Markdown."""
    costs = [Cost(**json.loads(line)) for line in path.read_text().splitlines()]
    lines = [
        "| group | cases | tests | longest | peak memory |",
        "|---|---|---|---|---|",
    ]
    for letter, (title, _) in GROUPS.items():
        of_group = [cost for cost in costs if (number_of(cost.case) or " ")[0] == letter]
        if not of_group:
            continue
        slow = max(of_group, key=lambda cost: cost.seconds)
        large = max(of_group, key=lambda cost: cost.peak_bytes)
        numbers = {number_of(cost.case) for cost in of_group}
        lines.append(
            f"| {letter}: {title} | {len(numbers)} | {len(of_group)} "
            f"| {slow.seconds:.2f} s ({name_of(slow.case)}) "
            f"| {large.peak_bytes / MEBIBYTE:.0f} MiB ({name_of(large.case)}) |"
        )
    return "\n".join(lines)


def name_of(test_id: str) -> str:
    """``Z17-long-component`` of a test's id."""
    name = test_id.rpartition("::")[2]
    return name.partition("[")[2].rstrip("]") or name.removeprefix("test_")
