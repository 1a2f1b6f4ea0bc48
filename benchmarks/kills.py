"""Workers that are killed: Reelsmith's queue beside plain Celery on Redis, in one run.

    python -m benchmarks.kills [--jobs N] [--kills N] [--seed N] [--out results.md]

The same jobs (0.1 s), slots (2), Redis (log synced at every write) and times of SIGKILL, which
takes the whole process group of the worker. Reelsmith's jobs are submitted over HTTP and stored in
SQLite; its worker claims, leases, stores a file and completes as it does for a training
(`queue_worker`). A job counts as completed as often as it said so at its very end. Needs
``redis-server`` on PATH.
"""

import argparse
import contextlib
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

from app.dev import free_port
from benchmarks.marks import JOB_S, MARKS, count
from tests.faults.chaos import small_archive
from tests.faults.client import Client
from tests.faults.stack import Layout, running

SLOTS = 2
SECONDS = 0.1
GAPS_S = (0.2, 2.0)
"""Between a worker's first job and its end."""
HOPELESS_S = 330.0
"""Without a sign of life: Celery's lock on giving messages back holds for 300 s when its holder is
killed, so what it has not given back by then it never will."""


@dataclass(frozen=True)
class Row:
    """What became of the jobs."""

    name: str
    jobs: int
    kills: int
    lost: int
    started_again: int
    completed_again: int
    billed: int | None = None
    """Rows of the ledger; plain Celery has none."""

    def __str__(self) -> str:
        billed = "-" if self.billed is None else str(self.billed)
        cells = (self.name, self.jobs, self.kills, self.lost, self.started_again)
        return "| " + " | ".join(map(str, (*cells, self.completed_again, billed))) + " |"


HEAD = (
    "| queue | jobs | SIGKILLs | never completed | started twice or more "
    "| completed twice or more | billed |\n|---|---|---|---|---|---|---|"
)


class Killed:
    """A worker that is ended at random times for as long as there are kills left."""

    def __init__(
        self, start: Callable[[], None], kill: Callable[[], None], seed: int, kills: int
    ) -> None:
        self._start, self._kill = start, kill
        self._rng = random.Random(seed)
        self.left = kills
        self.done = 0

    def run(self, marks: Path, jobs: int) -> dict[str, Counter[str]]:
        """Until every job has completed, or none has for so long that none will."""
        self._start()
        said, since = 0, time.monotonic()
        due: float | None = None
        while True:
            found = count(marks)
            total = found["start"].total() + found["done"].total()
            now = time.monotonic()
            if total > said:
                said, since = total, now
                if due is None and self.left > 0:
                    due = now + self._rng.uniform(*GAPS_S)
            if due is not None and now >= due:
                self._kill()
                self._start()
                self.left, self.done, due = self.left - 1, self.done + 1, None
                said = sum(counts.total() for counts in count(marks).values())
            if len(found["done"]) >= jobs or now - since > HOPELESS_S:
                return found
            time.sleep(0.02)


def row(name: str, ids: list[str], killed: Killed, found: dict[str, Counter[str]]) -> Row:
    again = {what: sum(number > 1 for number in found[what].values()) for what in found}
    lost = sum(job not in found["done"] for job in ids)
    return Row(name, len(ids), killed.done, lost, again["start"], again["done"])


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    port, files = free_port(), folder / "redis"
    files.mkdir()
    server = shutil.which("redis-server")
    assert server is not None, "redis-server is not on PATH"
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(files), "--save", ""]
    options += ["--appendonly", "yes", "--appendfsync", "always"]
    process = subprocess.Popen([server, *options], stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def plain(name: str, acks: str, jobs: int, kills: int, seed: int) -> Row:
    """Plain Celery; its queue is all that knows of a job."""
    from tests.faults.stack import Part

    with tempfile.TemporaryDirectory() as text, redis(Path(text)) as url:
        folder = Path(text)
        marks = folder / "marks"
        env = {**os.environ, "REELSMITH_REDIS_URL": url, "REELSMITH_BENCH_ACKS": acks}
        env |= {MARKS: str(marks), JOB_S: str(SECONDS)}
        client = Celery("plain", broker=url)
        ids = [f"job-{number}" for number in range(jobs)]
        for job in ids:
            client.send_task("plain.work", [job], queue="plain")
        command = [sys.executable, "-m", "celery", "-A", "benchmarks.plain_worker", "worker"]
        command += ["-Q", "plain", "-c", str(SLOTS), "--loglevel", "ERROR"]
        command += ["--without-gossip", "--without-mingle"]
        worker = Part("plain", command, env, folder / "worker.log")
        killed = Killed(worker.start, worker.kill, seed, kills)
        try:
            found = killed.run(marks, jobs)
        finally:
            worker.kill()
    return row(name, ids, killed, found)


def product(jobs: int, kills: int, seed: int) -> Row:
    """Reelsmith: the row is the truth."""
    from sqlalchemy import func, select

    from app.db.models import Request

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        marks = folder / "marks"
        env = {MARKS: str(marks), JOB_S: str(SECONDS)}
        env |= {"REELSMITH_LEASE_S": "3", "REELSMITH_HEARTBEAT_S": "1"}
        layout = Layout(
            gateways=1, workers=1, store="local", env=env, queues=("cpu",),
            worker_app="benchmarks.queue_worker", slots=SLOTS, started=("gateway",),
        )  # fmt: skip
        with running(folder / "stack", small_archive(folder), seed, layout) as stack:
            client = Client(stack.front.url, folder / "log", stack.files)
            ids = [client.submit("check").request_id for _ in range(jobs)]  # type: ignore[union-attr]
            (worker,) = stack.workers["cpu"]
            killed = Killed(worker.start, worker.kill, seed, kills)
            found = killed.run(marks, jobs)
            # A kill after the commit and before the mark has completed it all the same.
            with stack.database.read() as session:
                ended = set(session.scalars(select(Request.id).where(Request.result_status == 200)))
                billed = session.scalar(
                    select(func.count()).select_from(Request).where(Request.billable_units > 0)
                )
            for job in ended - set(found["done"]):
                found["done"][job] += 1
            made = row("Reelsmith", ids, killed, found)
    return Row(**{**vars(made), "billed": billed})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended, it ends what it started
    rest = (asked.jobs, asked.kills, asked.seed)
    lines = [HEAD]
    for measure in (
        lambda: plain("Celery, its defaults", "early", *rest),
        lambda: plain("Celery, acks_late and reject_on_worker_lost", "late", *rest),
        lambda: product(*rest),
    ):
        lines.append(str(measure()))
        print(lines[-1], flush=True)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, seed {asked.seed}"
    text = "\n".join([*lines, "", f"{asked.jobs} jobs of {SECONDS} s in {SLOTS} slots; {machine}."])
    print(f"\n{text}")
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
