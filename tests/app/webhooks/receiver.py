"""A receiver of webhooks on loopback that answers by a script."""

import contextlib
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """One POST, as it came."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes
    at: float
    """Epoch seconds."""

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


Answer = Callable[["Handler"], None]
"""Writes the answer to one POST."""


def status(code: int, *headers: tuple[str, str], body: bytes = b"thanks") -> Answer:
    def answer(handler: "Handler") -> None:
        handler.send_response(code)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def hang(handler: "Handler") -> None:
    """No answer until the receiver is closed."""
    handler.receiver.closing.wait()


def reset(handler: "Handler") -> None:
    """RST instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def silent_close(handler: "Handler") -> None:
    """The connection ends without an answer."""


def not_http(handler: "Handler") -> None:
    handler.wfile.write(b"220 mail.example.com ESMTP\r\n")


def trickle(handler: "Handler") -> None:
    """The head, one byte now and then."""
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 1000:
            handler.wfile.write(bytes([byte]))
            if handler.receiver.closing.wait(0.05):
                return


def endless_body(handler: "Handler") -> None:
    """200, then bytes for as long as they are taken."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while not handler.receiver.closing.is_set():
            handler.wfile.write(b"x" * 65536)
            handler.receiver.sent += 65536


@dataclass
class Receiver:
    """``answers`` answer one POST each; the last one answers all that follow."""

    url: str = ""
    port: int = 0
    answers: list[Answer] = field(default_factory=lambda: [status(200)])
    received: list[Received] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Condition = field(default_factory=threading.Condition)
    sent: int = 0

    def wait_for(self, number: int, timeout_s: float = 60.0) -> list[Received]:
        """The first ``number`` POSTs."""
        with self.arrived:
            came = self.arrived.wait_for(lambda: len(self.received) >= number, timeout_s)
            assert came, f"{len(self.received)} of {number} webhooks came"
            return self.received[:number]


class Handler(BaseHTTPRequestHandler):
    receiver: Receiver
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        headers: Message = self.headers
        body = self.rfile.read(int(headers["content-length"]))
        receiver = self.receiver
        with receiver.arrived:
            receiver.received.append(
                Received(self.path, {k.lower(): v for k, v in headers.items()}, body, time.time())
            )
            answer = receiver.answers[min(len(receiver.received), len(receiver.answers)) - 1]
            receiver.arrived.notify_all()
        self.close_connection = True
        answer(self)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    """Many deliveries connect at once."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that went away is what some tests are about."""


@contextlib.contextmanager
def receiving(*answers: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """A receiver for the length of a block."""
    receiver = Receiver(answers=list(answers) or [status(200)])
    handler = type("Bound", (Handler,), {"receiver": receiver})
    server = Server(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    receiver.port = server.server_address[1]
    receiver.url = f"http://127.0.0.1:{receiver.port}/hook"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield receiver
    finally:
        receiver.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
