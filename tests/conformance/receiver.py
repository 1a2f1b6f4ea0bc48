"""A webhook receiver, and fal's own ways to check what it gets."""

import base64
import hashlib
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

HEADERS = ("request-id", "user-id", "timestamp", "signature")
MAX_AGE_S = 300


@dataclass(frozen=True)
class Delivery:
    """One POST that arrived."""

    path: str
    headers: dict[str, str]
    """The four of the webhook, by the end of their names."""
    body: bytes
    """Raw: it is what was signed."""
    at: float


@dataclass
class Script:
    """What a path answers: the statuses in turn, then 200. `HANG` takes 20 s."""

    replies: list[int] = field(default_factory=list)


HANG = 0
HANG_S = 20.0


class Receiver:
    """An HTTP server on this machine, in a thread."""

    def __init__(self) -> None:
        self._scripts: dict[str, Script] = {}
        self._arrived = threading.Condition()
        self._deliveries: list[Delivery] = []
        self._closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._take(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def url(self, path: str, *replies: int) -> str:
        """Of a path that answers ``replies`` in turn, then 200."""
        self._scripts[path] = Script(list(replies))
        return f"http://127.0.0.1:{self.port}{path}"

    def wait(self, path: str, number: int, limit_s: float) -> list[Delivery]:
        """Deliveries to ``path``, at least ``number`` of them."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self.got(path)) >= number, limit_s)
            return self.got(path)

    def got(self, path: str) -> list[Delivery]:
        return [delivery for delivery in self._deliveries if delivery.path == path]

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["content-length"]))
        prefix = "x-fal-webhook-"
        headers = {name: handler.headers.get(prefix + name, "") for name in HEADERS}
        with self._arrived:
            self._deliveries.append(Delivery(handler.path, headers, body, time.time()))
            script = self._scripts.get(handler.path, Script())
            status = script.replies.pop(0) if script.replies else 200
            self._arrived.notify_all()
        if status == HANG:
            self._closing.wait(HANG_S)
            handler.close_connection = True
            return
        handler.send_response(status)
        if status in (301, 302, 307):
            handler.send_header("Location", f"http://127.0.0.1:{self.port}/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()


def verified(
    keys: Sequence[Mapping[str, Any]], delivery: Delivery, now: float | None = None
) -> bool:
    """The algorithm of fal's Python sample, step by step; ``x`` is decoded without padding it."""
    request_id, user_id, timestamp, signature = (delivery.headers[name] for name in HEADERS)
    if not all((request_id, user_id, timestamp, signature)):
        return False
    if abs((time.time() if now is None else now) - int(timestamp)) > MAX_AGE_S:
        return False
    message = "\n".join(
        (request_id, user_id, timestamp, hashlib.sha256(delivery.body).hexdigest())
    ).encode()
    for key in keys:
        try:
            public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"]))
            public.verify(bytes.fromhex(signature), message)
        except (InvalidSignature, ValueError):
            continue
        return True
    return False
