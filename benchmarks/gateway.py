"""How many submits and status polls one core answers, beside what a user would write instead.

    python -m benchmarks.gateway [--seconds N] [--no-gates] [--out results.md]

Each server is one process on CPU 0; the load (``wrk``, 32 connections) and Redis, with its log
synced at every write, are on CPU 1. The gateway is the product's own: SQLite with a commit on disk
for every submit that was answered, wake-ups sent afterwards. Beside it (a) FastAPI that calls
Celery's ``delay()`` (`plain_celery`) and (b) Starlette that returns a dict (`plain_starlette`).
Needs ``wrk`` and ``redis-server`` on PATH and two cores. The processor time of each call is given
too: on a machine that others use as well, it moves less than calls per second.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.rows import Row, table

SERVER_CPU, LOAD_CPU = 0, 1
CONNECTIONS = 32
POLLERS, POLLS_PER_S, POLL_SECONDS = 20, 10, 20
OLD_REQUESTS = 100_000
SUBMITS = 10_000
BODY = {
    "training_data_url": "https://example.com/clips.zip",
    "trigger_phrase": "in the style of xyz",
    "validation": [{"prompt": "a boat on a lake at dawn"}],
}
APP = "fal-ai/ltx23-trainer-v2"


@dataclass(frozen=True)
class Load:
    """What ``wrk`` saw."""

    per_s: float
    p50_ms: float
    p99_ms: float
    errors: int
    cpu_us: float
    """Processor time of the server for each call."""


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """Processor time of the process so far, all threads, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@contextlib.contextmanager
def process(cpu: int, *command: str, env: dict[str, str] | None = None) -> Iterator[int]:
    """A pinned process for the length of a block; gives its id."""
    pinned = ["taskset", "-c", str(cpu), *command]
    running = subprocess.Popen(
        pinned, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield running.pid
    finally:
        running.terminate()
        running.wait(30)


def wait_for(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url, trust_env=False)
            return
        time.sleep(0.1)
    raise TimeoutError(url)


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    options += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with process(LOAD_CPU, "redis-server", *options):
        time.sleep(0.5)
        yield f"redis://127.0.0.1:{port}/0"


@contextlib.contextmanager
def gateway(folder: Path, redis_url: str) -> Iterator[Served]:
    port = free_port()
    env = {name: value for name, value in os.environ.items() if "REELSMITH" not in name}
    env |= {
        "REELSMITH_DATA_DIR": str(folder),
        "REELSMITH_PORT": str(port),
        "REELSMITH_REDIS_URL": redis_url,
    }
    with process(SERVER_CPU, sys.executable, "-m", "app.cli", "serve", env=env) as pid:
        wait_for(f"http://127.0.0.1:{port}/health")
        yield Served(f"http://127.0.0.1:{port}", pid)


@contextlib.contextmanager
def plain(module: str, redis_url: str) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.{module}:app", "--port", str(port)]
    env = {**os.environ, "REELSMITH_REDIS_URL": redis_url}
    with process(SERVER_CPU, *command, "--no-access-log", env=env) as pid:
        wait_for(f"http://127.0.0.1:{port}/")
        yield Served(f"http://127.0.0.1:{port}", pid)


def wrk(server: Served, path: str, seconds: int, body: dict[str, object] | None = None) -> Load:
    command = ["taskset", "-c", str(LOAD_CPU), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s"]
    with tempfile.TemporaryDirectory() as folder:
        if body is not None:
            script = Path(folder) / "post.lua"
            text = json.dumps(body).replace("\\", "\\\\").replace("'", "\\'")
            script.write_text(
                f"wrk.method = 'POST'\nwrk.body = '{text}'\n"
                "wrk.headers['Content-Type'] = 'application/json'\n"
            )
            command += ["-s", str(script)]
        before_s = server.cpu_s()
        out = subprocess.run(
            [*command, "--latency", f"{server.url}/{path}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        cpu_s = server.cpu_s() - before_s
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", out)
    broken = re.search(r"Socket errors: (.*)", out)
    lost = sum(map(int, re.findall(r"\d+", broken[1]))) if broken else 0
    return Load(
        per_s=float(_found(r"Requests/sec:\s+([\d.]+)", out)),
        p50_ms=_ms(_found(r"^ +50%\s+(\S+)", out)),
        p99_ms=_ms(_found(r"^ +99%\s+(\S+)", out)),
        errors=(int(failed[1]) if failed else 0) + lost,
        cpu_us=cpu_s / int(_found(r"(\d+) requests in", out)) * 1e6,
    )


def _found(pattern: str, text: str) -> str:
    match = re.search(pattern, text, re.MULTILINE)
    assert match is not None, text
    return match[1]


def _ms(text: str) -> float:
    value, unit = float(re.sub(r"[a-z]+$", "", text)), re.sub(r"[\d.]", "", text)
    return value * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def submit_one(url: str) -> str:
    return str(httpx.post(f"{url}/t2v", json=BODY, trust_env=False).json()["request_id"])


async def poll(url: str, request_ids: list[str]) -> float:
    """p99 in ms of clients that each ask ten times a second, all at the same moments.

    They speak HTTP by hand: twenty of a client library take longer to ask than to be answered.
    """
    host, port = url.removeprefix("http://").split(":")
    times: list[float] = []

    async def client(request_id: str) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        path = f"/{APP}/requests/{request_id}/status?logs=false"
        question = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
        due = time.perf_counter()
        for _ in range(POLLS_PER_S * POLL_SECONDS):
            begun = time.perf_counter()
            writer.write(question)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.split(maxsplit=2)[1] in ("200", "202"), head
            await reader.readexactly(int(_found(r"content-length: (\d+)", head)))
            times.append(time.perf_counter() - begun)
            due += 1 / POLLS_PER_S
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client(request_id) for request_id in request_ids))
    return statistics.quantiles(times, n=100)[98] * 1e3


async def submit_exactly(url: str, count: int) -> int:
    """How many of ``count`` submits were answered 200."""
    answered = 0
    numbers = iter(range(count))

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal answered
        for _ in numbers:
            reply = await http.post("/t2v", json=BODY)
            answered += reply.status_code == 200

    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=60) as http:
        await asyncio.gather(*(client(http) for _ in range(CONNECTIONS)))
    return answered


def rows_in(folder: Path) -> int:
    with contextlib.closing(sqlite3.connect(folder / "reelsmith.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM requests").fetchone()[0])


def add_old_requests(folder: Path, count: int) -> None:
    """Copies of one request, ended: what a year of use leaves in the table."""
    with contextlib.closing(sqlite3.connect(folder / "reelsmith.db")) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
        copied = [name for name in names if name not in ("number", "id", "state", "finished_at")]
        connection.execute(
            f"INSERT INTO requests (id, state, finished_at, {', '.join(copied)}) "
            f"SELECT lower(hex(randomblob(18))), 'completed', created_at, {', '.join(copied)} "
            "FROM (SELECT * FROM requests LIMIT 1), "
            "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "SELECT i FROM n)",
            (count,),
        )
        connection.commit()


def run(seconds: int) -> list[Row]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis_url = stack.enter_context(redis(folder))
        with plain("plain_celery", redis_url) as server:
            celery = wrk(server, "t2v", seconds, BODY)
        with plain("plain_starlette", redis_url) as server:
            starlette = wrk(server, f"{APP}/requests/x/status", seconds)
        fresh, crowded, counted = folder / "fresh", folder / "crowded", folder / "counted"
        with gateway(fresh, redis_url) as server:
            submits = wrk(server, "t2v", seconds, BODY)
        with gateway(crowded, redis_url) as server:
            ids = [submit_one(server.url) for _ in range(POLLERS)]
            status_path = f"{APP}/requests/{ids[0]}/status"
            status = wrk(server, status_path, seconds)
            p99_polling = asyncio.run(poll(server.url, ids))
            add_old_requests(crowded, OLD_REQUESTS)
            status_later = wrk(server, status_path, seconds)
            submits_later = wrk(server, "t2v", seconds, BODY)
        with gateway(counted, redis_url) as server:
            answered = asyncio.run(submit_exactly(server.url, SUBMITS))
        made = rows_in(counted)
    errors = sum(load.errors for load in (submits, status, status_later, submits_later))
    return [
        Row("submits/s", submits.per_s, ".0f"),
        Row("submits, p50 ms", submits.p50_ms, ".1f"),
        Row("submits, p99 ms", submits.p99_ms, ".1f"),
        Row("(a) FastAPI + Celery delay(), submits/s", celery.per_s, ".0f"),
        Row("(a) p50 ms", celery.p50_ms, ".1f"),
        Row("(a) p99 ms", celery.p99_ms, ".1f"),
        Row("submit, processor time, µs", submits.cpu_us, ".0f"),
        Row("(a) processor time, µs", celery.cpu_us, ".0f"),
        Row("submits, times (a)", submits.per_s / celery.per_s, ".2f", at_least=2.0),
        Row("status polls/s", status.per_s, ".0f"),
        Row("status, p50 ms", status.p50_ms, ".1f"),
        Row("status, p99 ms", status.p99_ms, ".1f"),
        Row("(b) Starlette with a dict, polls/s", starlette.per_s, ".0f"),
        Row("status, processor time, µs", status.cpu_us, ".0f"),
        Row("(b) processor time, µs", starlette.cpu_us, ".0f"),
        Row("status, of (b)", status.per_s / starlette.per_s, ".0%", at_least=0.30),
        Row("status, p99 ms with 20 clients at 10/s each", p99_polling, ".1f", at_most=100),
        Row(
            "submits with 100,000 finished requests, of without",
            submits_later.per_s / submits.per_s,
            ".0%",
            at_least=0.85,
        ),
        Row(
            "status with 100,000 finished requests, of without",
            status_later.per_s / status.per_s,
            ".0%",
            at_least=0.85,
        ),
        Row("10,000 submits: answered", answered, ".0f", at_least=SUBMITS),
        Row("10,000 submits: rows", made, ".0f", at_least=SUBMITS, at_most=SUBMITS),
        Row("replies that were errors", errors, ".0f", at_most=0),
    ]


def main() -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=8, help="of each load")
    parser.add_argument("--no-gates", action="store_true", help="a missed gate is only marked")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    given = parser.parse_args()
    for program in ("wrk", "redis-server", "taskset"):
        if shutil.which(program) is None:
            print(f"{program} is not on PATH", file=sys.stderr)
            return 2
    os.sched_setaffinity(0, {LOAD_CPU})
    rows = run(given.seconds)
    text = (
        f"{table(rows)}\n\n{given.seconds} s each, {CONNECTIONS} connections; {os.cpu_count()} "
        f"cores, Python {platform.python_version()}, {platform.machine()}.\n"
    )
    print(text)
    if given.out:
        given.out.write_text(text, encoding="utf-8")
    missed = [row.what for row in rows if row.missed]
    if missed:
        print(f"gates missed: {'; '.join(missed)}", file=sys.stderr)
    return 1 if missed and not given.no_gates else 0


if __name__ == "__main__":
    sys.exit(main())
