"""How a long-running process grows, once it is warm (R21)."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any, Final

WARM_JOBS: Final = 1000
"""Of each worker, before its memory is judged. A job leaves cyclic garbage, and Python collects all
of it only when as many objects wait as a quarter of those that stay: every 354 to 405 empty jobs.
Memory rises steeply until the first of these collections, and by smaller steps in the next."""
LIMIT_PERCENT_PER_HOUR: Final = 1.0
"""The goal (`spec/reliability.md` R21)."""
LEAST_S: Final = 29 * 60.0
"""In less time the steps in which a heap grows, 0.3 MB and more, look like more than the limit."""


@dataclass(frozen=True)
class Size:
    """Of a part with its children, at a moment."""

    at_s: float
    jobs: int
    """That ended so far: a worker's own, or everybody's for a gateway."""
    mb: float
    files: int


@dataclass(frozen=True)
class Growth:
    """Of the resident memory over ``seconds`` and ``jobs``, by the least squares of all sizes."""

    first: Size
    last: Size
    mb_per_hour: float

    @classmethod
    def of(cls, sizes: Sequence[Size]) -> "Growth":
        """Needs two sizes of different times."""
        line = linear_regression([size.at_s for size in sizes], [size.mb for size in sizes])
        return cls(sizes[0], sizes[-1], line.slope * 3600.0)

    @property
    def seconds(self) -> float:
        return self.last.at_s - self.first.at_s

    @property
    def jobs(self) -> int:
        return self.last.jobs - self.first.jobs

    @property
    def percent_per_hour(self) -> float:
        return 100.0 * self.mb_per_hour / self.first.mb

    @property
    def kb_per_job(self) -> float:
        return 1000.0 * self.mb_per_hour * self.seconds / 3600.0 / max(self.jobs, 1)

    @property
    def too_much(self) -> bool:
        """Above the limit, where it was watched for long enough to say so."""
        return self.seconds >= LEAST_S and self.percent_per_hour >= LIMIT_PERCENT_PER_HOUR

    def numbers(self) -> dict[str, Any]:
        return {
            "MB": (self.first.mb, self.last.mb),
            "jobs": (self.first.jobs, self.last.jobs),
            "% an hour": round(self.percent_per_hour, 2),
            "kB a job": round(self.kb_per_job, 2),
        }


def by_jobs(sizes: Sequence[Size], every: int = 250) -> dict[int, float]:
    """MB by jobs: the first size at or after each so many."""
    found: dict[int, float] = {}
    for size in sizes:
        if not found or size.jobs // every > max(found) // every:
            found[size.jobs] = size.mb
    return found


def most_files(sizes: Sequence[Size]) -> tuple[int, int]:
    """Open files at first, and at most."""
    return sizes[0].files, max(size.files for size in sizes)
