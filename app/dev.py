"""The whole service on one machine: broker, gateway and workers as child processes.

`reelsmith up` runs it until Ctrl-C; the demo and the tests run it too. Every child leads its own
session, so that stopping ends its own children as well and nothing stays behind.
"""

import contextlib
import fcntl
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

import httpx
from kombu import Connection

from app.broker import EmbeddedBroker, make_celery, start_embedded
from app.settings import Settings
from preprocessing.lifetime import die_with_parent

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
"""A worker that trains saves a checkpoint first."""
RESTART_PAUSE_S = 2.0
LOCK_FILE = "up.lock"
_ENDS = (signal.SIGTERM, signal.SIGHUP)


@dataclass
class Child:
    """One process of the service, restarted when it dies."""

    name: str
    command: list[str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    starts: int = 0
    own_env: dict[str, str] = field(default_factory=dict)
    """Beside what all get."""
    before_exec: Callable[[], None] | None = None

    def start(self, env: dict[str, str]) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env={**env, **self.own_env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self.before_exec,
            )
        self.started_at = time.monotonic()
        self.starts += 1

    @property
    def dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    """A port nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class NotStarted(RuntimeError):
    """The service can't run here; the text says why."""


def require_free(host: str, port: int) -> None:
    """Raises `NotStarted` when something listens there already, perhaps another service."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NotStarted(
                f"port {port} of {host} can't be used ({error.strerror}); is a service running "
                "there already? Set REELSMITH_PORT to another one."
            ) from error


def hold(folder: Path) -> IO[str]:
    """A data folder for one service: two would sweep each other's files and share one Redis.

    The kernel lets go of it when this process ends, however it does. Raises `NotStarted`.
    """
    file = (folder / LOCK_FILE).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise NotStarted(
            f"another service runs in {folder}. Stop it first, or set REELSMITH_DATA_DIR to a "
            "folder of its own."
        ) from error
    return file


@dataclass
class Service:
    """Broker, gateway, one cpu worker and one gpu worker on this machine."""

    settings: Settings
    say: Callable[[str], None] = print
    broker: EmbeddedBroker | None = None
    children: list[Child] = field(default_factory=list)
    extra_env: dict[str, str] = field(default_factory=dict)
    """Settings for the children beyond those of ``settings``."""
    env: dict[str, str] = field(default_factory=dict)
    _broker_again_at: float = 0.0
    _held: IO[str] | None = None

    @property
    def url(self) -> str:
        return self.settings.public_url

    def start(self) -> None:
        """Raises `NotStarted`; then nothing runs, and the folder is free."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._held = hold(self.settings.data_dir)
        try:
            self._start()
        except NotStarted:
            self._held.close()
            raise

    def _start(self) -> None:
        settings = self.settings
        require_free(settings.host, settings.port)
        try:
            self.broker = start_embedded(
                settings.redis_url.get_secret_value() if settings.redis_url else None,
                settings.data_dir,
                settings.broker,
            )
        except RuntimeError as error:
            raise NotStarted(str(error)) from error
        self.say(f"broker: {self.broker.note}")
        self.env = {
            **os.environ,
            **self.extra_env,
            "REELSMITH_DATA_DIR": str(settings.data_dir.resolve()),
            "REELSMITH_HOST": settings.host,
            "REELSMITH_PORT": str(settings.port),
            "REELSMITH_PUBLIC_URL": settings.public_url,
            "REELSMITH_MODEL": settings.model,
            "PYTHONUNBUFFERED": "1",
        }
        for name, path in (("CERT", settings.tls_cert), ("KEY", settings.tls_key)):
            self.env.pop(f"REELSMITH_TLS_{name}", None)
            if path is not None:
                self.env[f"REELSMITH_TLS_{name}"] = str(path)
        if self.broker.redis_url:
            self.env["REELSMITH_REDIS_URL"] = self.broker.redis_url
        declare_queues(self.broker.redis_url, settings.data_dir)
        logs = settings.data_dir / "logs"
        self.children = [
            Child("gateway", [sys.executable, "-m", "app.cli", "serve"], logs / "gateway.log"),
            Child("cpu worker", worker_command("cpu"), logs / "worker-cpu.log"),
            Child("gpu worker", worker_command("gpu"), logs / "worker-gpu.log"),
        ]
        for child in self.children:
            child.before_exec = partial(die_with_parent, os.getpid(), signal.SIGTERM)
        if settings.metrics_port is not None:  # one for each: the next two ports are the workers'
            for number, child in enumerate(self.children):
                port = str(settings.metrics_port + number)
                child.own_env["REELSMITH_METRICS_PORT"] = port
        self.children[0].start(self.env)
        self._wait_for_gateway(self.children[0])
        for child in self.children[1:]:
            child.start(self.env)
        self.say(f"gateway: {self.url}, logs and files in {settings.data_dir}")

    def _wait_for_gateway(self, gateway: Child) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        scheme, verify = (
            ("https", _only(cert)) if (cert := self.settings.tls_cert) else ("http", True)
        )
        while time.monotonic() < deadline:
            if gateway.dead:
                break
            with contextlib.suppress(httpx.HTTPError):
                url = f"{scheme}://127.0.0.1:{self.settings.port}/health"
                if httpx.get(url, trust_env=False, timeout=2.0, verify=verify).status_code == 200:
                    return
            time.sleep(0.1)
        tail = gateway.log.read_text(errors="replace")[-2000:] if gateway.log.exists() else ""
        self.stop()
        raise NotStarted(f"the gateway did not start; the end of {gateway.log}:\n{tail}")

    def watch(self) -> None:
        """Restart what died. Called every second or so."""
        now = time.monotonic()
        if self.broker is not None and self.broker.dead and now > self._broker_again_at:
            self.say("the broker ended; starting it again")
            self.broker.revive()
            self._broker_again_at = now + RESTART_PAUSE_S
        for child in self.children:
            if child.dead and time.monotonic() - child.started_at > RESTART_PAUSE_S:
                assert child.process is not None
                code = child.process.returncode
                self.say(f"{child.name} ended with {code} (see {child.log}); starting it again")
                child.kill()  # what it left in its session
                child.start(self.env)

    def stop(self) -> None:
        """End workers first (they give back their work), then the gateway, then the broker."""
        for group in (self.children[1:], self.children[:1]):
            for child in group:
                child.signal(signal.SIGTERM)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            for child in group:
                if child.process is not None:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.process.wait(max(0.1, deadline - time.monotonic()))
                child.kill()
        if self.broker is not None:
            self.broker.stop()
        if self._held is not None:
            self._held.close()


def _only(certificate: Path) -> ssl.SSLContext:
    """Trusts ``certificate`` under any name: it need not have the loopback address as one."""
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def worker_command(queue: str) -> list[str]:
    """A Celery worker with one slot for one queue."""
    return [
        *(sys.executable, "-m", "celery", "--quiet", "-A", "workers.celery_app", "worker"),
        *("-Q", queue, "-n", f"{queue}@%h", "-c", "1", "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle"),
    ]


def declare_queues(redis_url: str | None, data_dir: Path) -> None:
    """Make the queues before anyone uses them.

    On the files broker two workers that declare at the same moment can read each other's half
    written table; once it is there, declaring only reads.
    """
    celery = make_celery(redis_url, data_dir)
    connection: Connection
    with celery.connection_for_write() as connection, connection.channel() as channel:
        for queue in celery.conf.task_queues:
            queue(channel).declare()


@contextlib.contextmanager
def running(settings: Settings, say: Callable[[str], None] = print) -> Iterator[Service]:
    """The service for the length of a block; SIGTERM, and a terminal that is closed, end it as
    Ctrl-C does. Killed, it takes its children along all the same."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    service = Service(settings, say)
    # What nohup has it ignore, it goes on ignoring.
    heeded = [number for number in _ENDS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        service.start()
        yield service
    finally:
        # A second Ctrl-C must not leave half of it running.
        interrupts = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)
        service.stop()
        signal.signal(signal.SIGINT, interrupts)
        for number, handler in before.items():
            signal.signal(number, handler)
