"""Goals about many requests: one key's flood, and a service that runs for long (R19, R21)."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import redis
from sqlalchemy import func, select, update

from app.db.models import Attempt, Outcome, Request
from app.requests import turns
from app.requests.background import SWEEP_EVERY_S
from tests.faults.client import TRAINING
from tests.faults.gateway_goals import THREADS
from tests.faults.growth import WARM_JOBS, Growth, Size, by_jobs, most_files
from tests.faults.scene import Asked, Figure, Scene, scene
from tests.faults.worker_goals import light
from tests.service.harness import descendants

MAX_QUEUED = 100
UNLIMITED = "faults-unlimited-key"
VICTIM = "the-key-of-the-victim"
VICTIM_WAITS_S = 10.0
PAUSE_S = 0.3
"""Between submits of R21."""
WARMING_PAUSE_S = 0.1
"""The same until its workers are warm."""
WARM_S = SWEEP_EVERY_S + 60.0
"""Since the start, besides: a gateway's first sweep that has something to clean up takes 3 MB."""
WARMING_LIMIT_S = WARM_S + 1200.0


def r19(asked: Asked) -> Figure:
    """One key submits without end, first with limits and then without; another key's request starts
    all the same."""
    figure = Figure("R19")
    calls = asked.times(1000)
    layout = light(2)
    layout = replace(layout, env={**layout.env, "REELSMITH_API_KEYS": f"{VICTIM},{UNLIMITED}"})
    with scene(figure, asked.seed, layout) as on:
        answers, waited = _flood(on, _limited_key(on), calls)
        figure.numbers |= {
            "calls of each": calls,
            "with limits": {"max_queued": MAX_QUEUED, "max_running": 1},
            "answers with limits": dict(answers),
            "the other key waited, s": round(waited, 2),
        }
        figure.require(set(answers) <= {200, 403, 429}, f"answers: {answers}")
        figure.require(answers.keys() & {403, 429}, "nothing was refused")
        figure.require(waited <= VICTIM_WAITS_S, f"the other key waited {waited:.1f} s")

        answers, waited = _flood(on, UNLIMITED, calls)
        figure.numbers |= {
            "answers without limits": dict(answers),
            "waiting then": _num_waiting(on),
            "the other key waited then, s": round(waited, 2),
        }
        figure.require(answers.keys() == {200}, f"answers without limits: {answers}")
        figure.require(waited <= VICTIM_WAITS_S, f"the other key waited {waited:.1f} s")
        with on.stack.database.write() as session:
            session.execute(update(Request).values(cancel_requested_at=1.0))
        on.all_ended()
    return figure


def _flood(on: Scene, flood: str, calls: int) -> tuple[Counter[int], float]:
    """What the flood was answered, and how long the other key's requests waited at most: one that
    came in its midst, one at its end."""
    body = {**TRAINING, "training_data_url": on.stack.files.url}

    def submit(key: str) -> httpx.Response:
        headers = {"authorization": f"Key {key}"}
        with httpx.Client(base_url=on.stack.front.url, trust_env=False, timeout=30.0) as http:
            return http.post("/t2v/check", json=body, headers=headers)

    def waited(victim: str) -> float:
        def started() -> Request | None:
            with on.stack.database.read() as session:
                return session.scalar(
                    select(Request).where(Request.id == victim, Request.started_at.is_not(None))
                )

        row = on.stack.until(started, 60.0, "the victim's start")
        assert isinstance(row, Request)
        assert row.started_at is not None
        return row.started_at - row.created_at

    submit(flood).raise_for_status()
    with ThreadPoolExecutor(THREADS) as pool:
        replies = pool.map(lambda _: submit(flood).status_code, range(calls))
        time.sleep(2.0)
        in_midst = submit(VICTIM).json()["request_id"]
        answers = Counter(replies)
    at_end = submit(VICTIM).json()["request_id"]
    return answers, max(waited(in_midst), waited(at_end))


def _num_waiting(on: Scene) -> int:
    with on.stack.database.read() as session:
        return turns.waiting(session).total


def _limited_key(on: Scene) -> str:
    command = [sys.executable, "-m", "app.cli", "keys", "create", "--name", "flood"]
    command += ["--max-queued", str(MAX_QUEUED), "--max-running", "1"]
    env = on.stack.gateways[0].env
    made = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    time.sleep(2.5)  # gateways look for new keys that often
    return made.stdout.strip()


def r21(asked: Asked) -> Figure:
    """Small jobs, first until workers and gateway are warm, then for so many minutes
    (``--rounds``): memory, files and keys stay where they are."""
    figure = Figure("R21")
    minutes = asked.times(2)
    with scene(figure, asked.seed, light(2)) as on:
        warm, over = threading.Event(), threading.Event()

        def submit() -> None:
            while not over.is_set():
                on.client.submit("check")
                time.sleep(PAUSE_S if warm.is_set() else WARMING_PAUSE_S)

        thread = threading.Thread(target=submit)
        thread.start()
        try:
            warm_at = time.monotonic() + WARM_S
            cold = _sizes_after(on, 1)
            _sizes_after(on, WARM_JOBS)
            time.sleep(max(0.0, warm_at - time.monotonic()))
            samples = [_sizes(on)]
            warm.set()
            ends = time.monotonic() + 60.0 * minutes
            while time.monotonic() < ends:
                time.sleep(5.0)
                samples.append(_sizes(on))
        finally:
            over.set()
            thread.join()
        on.all_ended()
        assert on.stack.redis_wire is not None
        with contextlib.closing(redis.Redis(port=on.stack.redis_wire.upstreams[0])) as server:
            keys = server.dbsize()
        work = on.stack.settings.data_dir / "work"
        left = [path for path in work.rglob("*") if path.is_file()]
    by_part = {name: [sizes[name] for sizes in samples] for name in cold}
    growth = {name: Growth.of(sizes) for name, sizes in by_part.items()}
    figure.numbers |= {
        "minutes": minutes,
        "MB, cold": {name: size.mb for name, size in cold.items()},
        "warm": {name: grown.numbers() for name, grown in growth.items()},
        "MB by jobs": {name: by_jobs(sizes) for name, sizes in by_part.items()},
        "open files, first and most": {n: most_files(sizes) for n, sizes in by_part.items()},
        "keys in Redis at the end": keys,
        "files left in work": len(left),
    }
    figure.require(not left, f"{len(left)} files are left in work")
    for name, sizes in by_part.items():
        first, most = most_files(sizes)
        figure.require(most < first + 40, f"{name} has {most} open files")
        percent = growth[name].percent_per_hour
        figure.require(not growth[name].too_much, f"{name} grows by {percent:.1f} % an hour")
    return figure


def _sizes_after(on: Scene, jobs: int) -> dict[str, Size]:
    """`_sizes`, as soon as every worker has ended so many jobs."""

    def reached() -> dict[str, Size] | None:
        sizes = _sizes(on)
        workers = (sizes[part.name] for part in on.stack.workers["cpu"])
        return sizes if all(size.jobs >= jobs for size in workers) else None

    sizes: dict[str, Size] = on.stack.until(reached, WARMING_LIMIT_S, f"{jobs} jobs of each worker")
    return sizes


def _sizes(on: Scene) -> dict[str, Size]:
    """Of gateways and workers, by name."""
    with on.stack.database.read() as session:
        ended = session.execute(
            select(Attempt.worker, func.count())
            .where(Attempt.outcome == Outcome.COMPLETED)
            .group_by(Attempt.worker)
        )
        by_pid = {int(worker.rpartition(":")[2]): jobs for worker, jobs in ended}
    found = {}
    for part in (*on.stack.gateways, *on.stack.workers["cpu"]):
        pids = (part.pid, *descendants(part.pid))
        mine = by_pid if part in on.stack.gateways else pids
        jobs = sum(by_pid.get(pid, 0) for pid in mine)
        found[part.name] = Size(time.monotonic(), jobs, *_size(pids))
    return found


def _size(pids: Sequence[int]) -> tuple[float, int]:
    """(MB of memory, open files) of these processes together."""
    pages = files = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 2), files
