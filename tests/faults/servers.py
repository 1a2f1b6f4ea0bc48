"""What stands around the service: users' files, receivers of webhooks, an S3 server, its proxy."""

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from app.dev import free_port

START_TIMEOUT_S = 90.0


@dataclass
class Files:
    """A server of users' files. ``faults``: how answers to come are spoiled, the last one first."""

    content: bytes
    """The archive: whatever path has no file of its own."""
    others: Mapping[str, bytes]
    """Further files by name."""
    port: int = 0
    faults: list[str] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return self.url_of("clips.zip")

    def url_of(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def serving_files(archive: Path, others: Mapping[str, bytes]) -> Iterator[Files]:
    """Whoever asks for ``?n=...`` gets ``archive`` under a URL of its own."""
    files = Files(archive.read_bytes(), others)

    class Asked(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fault = files.faults.pop() if files.faults else "none"
            files.served[fault] += 1
            first = _range_start(self.headers.get("range"))
            content = files.others.get(self.path.removeprefix("/"), files.content)
            body = content[first:]
            if fault == "503":
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if first else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("ETag", '"one"')
            self.send_header("Accept-Ranges", "bytes")
            if first:
                last, size = len(content) - 1, len(content)
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if fault == "none":
                self.wfile.write(body)
                return
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if fault == "stall":
                files.closing.wait(2.0)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _served(Asked) as port:
        files.port = port
        try:
            yield files
        finally:
            files.closing.set()


def _range_start(header: str | None) -> int:
    return int(header.removeprefix("bytes=").partition("-")[0]) if header else 0


@dataclass(frozen=True)
class Hook:
    """One POST, and whether it was answered with 200."""

    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    taken: bool


@dataclass
class Hooks:
    """What came. ``failing``: the part of POSTs that get no 200."""

    seed: int
    failing: float
    port: int = 0
    received: list[Hook] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@contextlib.contextmanager
def receiving_hooks(seed: int, failing: float) -> Iterator[Hooks]:
    """A receiver of webhooks that fails some, each in its own way."""
    hooks, rng, lock = Hooks(seed, failing), random.Random(seed), threading.Lock()

    class Posted(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                fails = rng.random() < hooks.failing
                fault = rng.choice(["500", "404", "503", "reset", "silence"]) if fails else "200"
                hooks.received.append(Hook(headers, body, not fails))
            self.close_connection = True
            if fault == "reset":
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            elif fault != "silence":
                self.send_response(int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _served(Posted) as port:
        hooks.port = port
        yield hooks


class _Server(ThreadingHTTPServer):
    request_queue_size = 256

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # whoever asked has died, which is what this is about


@contextlib.contextmanager
def _served(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[int]:
    """An S3 server, its port."""
    port = free_port()
    with (folder / "moto.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://127.0.0.1:{port}/moto-api/", trust_env=False)
                break
            assert process.poll() is None, (folder / "moto.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the S3 server did not start"
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()
