"""T2: whether a clock can tell a key that is nearly right from one that is not.

    python -m tests.hostile.timing [requests per class]

Asks a gateway process on loopback, the classes in random order, and compares their latencies with
the first class's (Mann-Whitney). A class that could be told apart has a p below 0.01 in most runs;
among several honest classes one run in thirty has one by chance.
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import NormalDist, median

import httpx

from tests.hostile.gateway import ALICE, serving

CLASSES = {
    "wrong from the start": "x" + ALICE[1:],
    "wrong in the middle": ALICE[:12] + "x" + ALICE[13:],
    "wrong at the end": ALICE[:-1] + "x",
    "too short": ALICE[:5],
}


def mann_whitney_p(one: list[float], other: list[float]) -> float:
    """Two-sided, by the normal approximation; ties are broken by the clock's nanoseconds."""
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    rank_sum = sum(rank for rank, (_, group) in enumerate(ranked, start=1) if group == 0)
    n, m = len(one), len(other)
    u = rank_sum - n * (n + 1) / 2
    deviation = (n * m * (n + m + 1) / 12) ** 0.5
    return 2 * (1 - NormalDist().cdf(abs(u - n * m / 2) / deviation))


def measure(http: httpx.Client, num_requests: int) -> dict[str, list[float]]:
    """Seconds of each request, by class."""
    asked = [name for name in CLASSES for _ in range(num_requests)]
    random.shuffle(asked)
    seconds: dict[str, list[float]] = {name: [] for name in CLASSES}
    for name in asked:
        header = {"authorization": f"Key {CLASSES[name]}"}
        started = time.perf_counter_ns()
        reply = http.get("/t2v/requests/x/status", headers=header)
        seconds[name].append((time.perf_counter_ns() - started) / 1e9)
        assert reply.status_code == 401
    return seconds


def main(num_requests: int) -> None:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as served:
        seconds = measure(served.http, num_requests)
    base, *others = CLASSES
    print(f"{num_requests} requests per class; p against {base!r}")
    print("| class | median | p |\n|---|---|---|")
    print(f"| {base} | {median(seconds[base]) * 1e6:.0f} us | |")
    for name in others:
        p = mann_whitney_p(seconds[base], seconds[name])
        print(f"| {name} | {median(seconds[name]) * 1e6:.0f} us | {p:.3f} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
