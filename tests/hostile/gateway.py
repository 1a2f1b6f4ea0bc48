"""The gateway as a process of its own, and connections to it that know no manners."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.db.engine import Database
from app.dev import free_port
from app.settings import Settings

START_LIMIT_S = 90.0
ALICE, BOB = "alice:wonderland-3141592653", "bob:builder-2718281828"
"""Keys of two tenants."""
OPEN_FILES = 400
"""Of the gateway: few enough for a test to use them up."""


@dataclass
class Served:
    """A running gateway. Logs and files lie in ``settings.data_dir``."""

    settings: Settings
    process: "subprocess.Popen[bytes]"
    log: Path
    http: httpx.Client
    """As Alice."""

    @property
    def pid(self) -> int:
        return self.process.pid

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.settings.port), timeout=60.0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def say(self, *parts: bytes) -> bytes:
        """Everything that is answered to these bytes before the gateway closes, or falls silent
        after a whole answer."""
        with self.connect() as connection:
            for part in parts:
                with suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(part)
            return read_answer(connection)

    def is_well(self) -> bool:
        return self.http.get("/health").status_code == 200

    def database(self) -> Database:
        return Database(self.settings.database_url)


def read_answer(connection: socket.socket) -> bytes:
    """To the end of the body that Content-Length promises, or until the other side closes."""
    got = b""
    with suppress(ConnectionResetError):
        while not is_whole(got):
            received = connection.recv(65536)
            if not received:
                break
            got += received
    return got


def is_whole(answer: bytes) -> bool:
    head, separator, body = answer.partition(b"\r\n\r\n")
    if not separator:
        return False
    lengths = [
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length:")
    ]
    return bool(lengths) and len(body) >= lengths[0]


def status_of(answer: bytes) -> int:
    """0 for no answer at all."""
    return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else 0


@contextmanager
def serving(folder: Path, **more: str) -> Iterator[Served]:
    """A gateway with data in ``folder``; ``more`` are settings by their variables' names."""
    port = free_port()
    variables = {
        "REELSMITH_DATA_DIR": str(folder),
        "REELSMITH_PORT": str(port),
        "REELSMITH_API_KEYS": f"{ALICE},{BOB}",
        "REELSMITH_LOG_LEVEL": "INFO",
        **more,
    }
    command = f"ulimit -n {OPEN_FILES} && exec {sys.executable} -m app.cli serve"
    log = folder / "gateway.log"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("REELSMITH_")}
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sh", "-c", command],
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    settings: dict[str, Any] = {"data_dir": folder, "port": port}
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"Authorization": f"Key {ALICE}"},
        timeout=60.0,
        trust_env=False,
    )
    served = Served(Settings(**settings), process, log, http)
    try:
        wait_until_well(served)
        yield served
    finally:
        http.close()
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_well(served: Served) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and served.process.poll() is None:
        with suppress(httpx.HTTPError):
            if served.is_well():
                return
        time.sleep(0.1)
    raise AssertionError(served.log.read_text(errors="replace")[-2000:])
