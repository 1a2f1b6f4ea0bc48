"""Gateways, workers, broker, database and store as processes that a test can end, stop and cut."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx

from app.db.engine import Database
from app.dev import Child, declare_queues, free_port, worker_command
from app.settings import Settings
from app.storage import Storage, make_storage
from tests.app.storage.proxy import Proxy, running_proxy
from tests.faults.databases import fresh_database
from tests.faults.material import material
from tests.faults.servers import Files, Hooks, moto, receiving_hooks, serving_files
from tests.faults.wire import Wire, wire
from tests.service.harness import descendants, processes_of

LEASE_S = 6.0
QUICK = {
    "REELSMITH_LEASE_S": f"{LEASE_S:g}",
    "REELSMITH_HEARTBEAT_S": "1",
    "REELSMITH_REAPER_INTERVAL_S": "1",
    "REELSMITH_CHECKPOINT_EVERY": "20",
    "REELSMITH_ATTEMPTS_LIMIT": "50",
    "REELSMITH_WEBHOOK_PACE": "0.1",
}
"""Leases that a test can outwait; and as many attempts as faults come, so that every request ends
well and not because a plan hit it three times."""
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 90.0
S3_KEYS = ("faults-access-key", "faults-secret-key")


@dataclass(frozen=True)
class Layout:
    """What is started."""

    gateways: int = 2
    workers: int = 2
    """Of each queue."""
    broker: Literal["redis", "files"] = "redis"
    store: Literal["s3", "local"] = "s3"
    postgres: str | None = None
    """URL of a server; a database of its own is made there. None: SQLite."""
    env: dict[str, str] = field(default_factory=dict)
    """Settings beyond `QUICK`."""
    failing_hooks: float = 0.3
    queues: tuple[str, ...] = ("cpu", "gpu")
    worker_app: str = "workers.celery_app"
    slots: int = 1
    """Of each worker."""
    started: tuple[str, ...] = ("gateway", "cpu", "gpu")
    """What runs from the beginning, by the first part of its name."""
    wired: Literal["all", "workers"] = "all"
    """Who goes through the wires to Redis and the database; the others connect directly."""


class Part:
    """One process of the service, with what it started."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.env = env
        self._child = Child(name, command, log)
        self._frozen: list[int] = []

    @property
    def pid(self) -> int:
        assert self._child.process is not None
        return self._child.process.pid

    @property
    def log(self) -> str:
        path = self._child.log
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def dead(self) -> bool:
        return self._child.process is None or self._child.dead

    def start(self) -> None:
        self._child.start(self.env)

    def kill(self) -> None:
        """SIGKILL of its group; what leads a session of its own dies with its parent."""
        self.thaw()
        self._child.kill()

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM; its exit status."""
        self.thaw()
        assert self._child.process is not None
        self._child.signal(signal.SIGTERM)
        return self._child.process.wait(timeout_s)

    def freeze(self) -> None:
        """SIGSTOP of all of it."""
        self._frozen = [self.pid, *descendants(self.pid)]
        _signal(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        _signal(self._frozen, signal.SIGCONT)
        self._frozen = []

    def child(self, marker: bytes) -> int | None:
        """A process below it whose command line has ``marker``."""
        for pid in [] if self.dead else descendants(self.pid):
            with contextlib.suppress(OSError):
                if marker in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        return None


@dataclass
class Stack:
    """The running service. Everything is healed by `heal`, whatever was done to it."""

    folder: Path
    layout: Layout
    settings: Settings
    """As the parts have them, past the wires: for the judge."""
    front: Wire
    files: Files
    hooks: Hooks
    gateways: list[Part]
    workers: dict[str, list[Part]]
    redis: Part | None
    redis_wire: Wire | None
    database_wire: Wire | None
    s3: Proxy | None
    database: Database
    http: httpx.Client

    @property
    def storage(self) -> Storage:
        return make_storage(self.settings, patience_s=5.0)

    @property
    def parts(self) -> list[Part]:
        all_workers = [part for parts in self.workers.values() for part in parts]
        return [*([self.redis] if self.redis else []), *self.gateways, *all_workers]

    @property
    def failpoints(self) -> Path:
        return self.folder / "failpoints"

    def arm(self, place: str, action: str, times: int = 1) -> None:
        """For whoever reaches ``place`` next (`preprocessing.failpoints`)."""
        with self.failpoints.open("a") as file:
            file.write(f"{place} {action} {times}\n")

    def fired(self) -> list[str]:
        """``PLACE ACTION`` of what fired so far."""
        file = self.failpoints.with_name("failpoints.fired")
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.rpartition(" ")[0] for line in lines]

    def restart_dead(self) -> list[str]:
        """As a supervisor does; the names of what was started."""
        dead = [part for part in self.parts if part.dead]
        for part in dead:
            part.start()
        return [part.name for part in dead]

    def heal(self) -> None:
        """Everything runs and is connected again."""
        self.failpoints.write_text("")
        for line in filter(None, (self.front, self.redis_wire, self.database_wire)):
            line.latency_s, line.lost_answers = 0.0, 0
            line.set("open")
        if self.s3 is not None:
            self.s3.faults.clear()
        self.files.faults.clear()
        for part in self.parts:
            part.thaw()
        self.restart_dead()

    def ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return self.http.get("/ready").status_code == 200
        return False

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.ready():
            assert time.monotonic() < deadline, self.tails()
            time.sleep(0.1)

    def until(self, condition: Callable[[], Any], limit_s: float, what: str) -> Any:
        """Until ``condition`` is true, restarting what died; its value."""
        deadline = time.monotonic() + limit_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s\n{self.tails()}"
            self.restart_dead()
            time.sleep(0.1)
        return value

    def tails(self, characters: int = 1500) -> str:
        return "\n".join(f"== {part.name}\n{part.log[-characters:]}" for part in self.parts)


@contextlib.contextmanager
def running(folder: Path, archive: Path, seed: int, layout: Layout) -> Iterator[Stack]:
    """The whole of it for the length of a block; nothing of it survives."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir()
    (folder / "failpoints").write_text("")
    with contextlib.ExitStack() as around:
        files = around.enter_context(serving_files(archive, material()))
        hooks = around.enter_context(receiving_hooks(seed, layout.failing_hooks))
        ports = [free_port() for _ in range(layout.gateways)]
        front = around.enter_context(wire(*ports))
        env = _environment(folder, files, hooks, front, layout)
        url, database_wire = around.enter_context(fresh_database(folder, layout.postgres))
        direct = dict(env)
        if database_wire is not None:
            direct["REELSMITH_DATABASE_URL"] = url
            through = url.replace(f":{database_wire.upstreams[0]}/", f":{database_wire.port}/")
            env["REELSMITH_DATABASE_URL"] = through
        s3 = None
        if layout.store == "s3":
            s3_port = around.enter_context(moto(folder))
            s3 = around.enter_context(running_proxy(f"http://127.0.0.1:{s3_port}"))
            env |= _s3(s3.url)
            direct |= _s3(f"http://127.0.0.1:{s3_port}")
        redis, redis_wire = None, None
        if layout.broker == "redis":
            redis_port = free_port()
            redis_wire = around.enter_context(wire(redis_port))
            env["REELSMITH_REDIS_URL"] = f"redis://127.0.0.1:{redis_wire.port}/0"
            direct["REELSMITH_REDIS_URL"] = f"redis://127.0.0.1:{redis_port}/0"
            redis = Part("redis", _redis(folder, redis_port), env, folder / "logs" / "redis.log")
        settings = _settings(direct)
        of_gateways = env if layout.wired == "all" else direct
        database = Database(settings.database_url)
        around.callback(database.close)
        http = around.enter_context(httpx.Client(base_url=front.url, timeout=30.0, trust_env=False))
        stack = Stack(
            folder, layout, settings, front, files, hooks,
            [_gateway(folder, of_gateways, number, port) for number, port in enumerate(ports)],
            {queue: [_worker(folder, env, layout, queue, n) for n in range(layout.workers)]
             for queue in layout.queues},
            redis, redis_wire, database_wire, s3, database, http,
        )  # fmt: skip
        around.callback(_stop, stack)
        _start(stack, env)
        yield stack


def _start(stack: Stack, env: dict[str, str]) -> None:
    if stack.redis is not None:
        stack.redis.start()
        time.sleep(0.5)
    declare_queues(env.get("REELSMITH_REDIS_URL"), stack.settings.data_dir)
    stack.gateways[0].start()
    stack.wait_ready()
    for part in stack.parts:
        if part.dead and part.name.partition("-")[0] in stack.layout.started:
            part.start()


def _stop(stack: Stack) -> None:
    """Workers first, as an operator does; then no process may be left."""
    workers = [part for parts in stack.workers.values() for part in parts]
    for group in (workers, stack.gateways, [stack.redis] if stack.redis else []):
        running = [part for part in group if not part.dead]
        for part in running:
            part.thaw()
            part._child.signal(signal.SIGTERM)
        for part in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                part.terminate()
        for part in group:
            part.kill()


def left_behind(stack: Stack) -> list[str]:
    """Command lines of processes that outlived the service. Called after the block."""
    return processes_of(stack.settings.data_dir)


def _environment(
    folder: Path, files: Files, hooks: Hooks, front: Wire, layout: Layout
) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REELSMITH_")}
    return {
        **kept,
        **QUICK,
        "REELSMITH_DATA_DIR": str((folder / "data").resolve()),
        "REELSMITH_PUBLIC_URL": front.url,
        "REELSMITH_FETCH_ALLOW_PRIVATE_HOSTS": "127.0.0.1",
        "REELSMITH_FETCH_EXTRA_PORTS": str(files.port),
        "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS": "127.0.0.1",
        "REELSMITH_WEBHOOK_EXTRA_PORTS": str(hooks.port),
        "REELSMITH_FAILPOINTS": str((folder / "failpoints").resolve()),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str((folder / "tmp").resolve()),
        **layout.env,
    }


def _settings(env: dict[str, str]) -> Settings:
    values = {
        name.removeprefix("REELSMITH_").lower(): value
        for name, value in env.items()
        if name.startswith("REELSMITH_")
    }
    return Settings.model_validate(values)


def _s3(endpoint: str) -> dict[str, str]:
    return {
        "REELSMITH_S3_BUCKET": "faults",
        "REELSMITH_S3_ENDPOINT": endpoint,
        "REELSMITH_S3_REGION": "us-east-1",
        "REELSMITH_S3_ACCESS_KEY_ID": S3_KEYS[0],
        "REELSMITH_S3_SECRET_ACCESS_KEY": S3_KEYS[1],
    }


def _redis(folder: Path, port: int) -> list[str]:
    files = folder / "redis"
    files.mkdir(exist_ok=True)
    server = shutil.which("redis-server")
    assert server is not None, "this layout needs redis-server on PATH; broker=files does not"
    return [
        server,
        *("--port", str(port), "--bind", "127.0.0.1", "--dir", str(files), "--save", ""),
        *("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"),
    ]


def _gateway(folder: Path, env: dict[str, str], number: int, port: int) -> Part:
    name = f"gateway-{number}"
    mine = {**env, "REELSMITH_PORT": str(port)}
    command = [sys.executable, "-m", "app.cli", "serve"]
    return Part(name, command, mine, folder / "logs" / f"{name}.log")


def _worker(folder: Path, env: dict[str, str], layout: Layout, queue: str, number: int) -> Part:
    name = f"{queue}-{number}"
    changed = {f"{queue}@%h": f"{name}@%h", "workers.celery_app": layout.worker_app}
    command = [changed.get(word, word) for word in worker_command(queue)]
    command[command.index("-c") + 1] = str(layout.slots)
    mine = {**env, "REELSMITH_METRICS_PORT": str(free_port())}
    return Part(name, command, mine, folder / "logs" / f"{name}.log")


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
