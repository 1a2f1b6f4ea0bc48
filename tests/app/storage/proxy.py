"""A proxy before an S3 server that fails as told, and can check presigned URLs as S3 does.

The test server (moto) accepts any signature (`spec/reliability.md` 0.12).
"""

import contextlib
import http.client
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from app.storage.sigv4 import presigned_holds


@dataclass
class Fault:
    """What happens to the next ``times`` requests that ``matches(method, path)``."""

    kind: str
    """``503``, ``reset`` (before an answer), ``corrupt`` (a byte of the body), ``wrong etag``."""
    matches: Callable[[str, str], bool] = lambda method, path: True
    times: int = 1


@dataclass
class Proxy:
    """What the handler obeys and what it saw."""

    upstream: str
    url: str = ""
    faults: list[Fault] = field(default_factory=list)
    keys: tuple[str, str] | None = None
    """Access key and secret: presigned URLs are then checked."""
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault_for(self, method: str, path: str) -> str | None:
        with self.lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.matches(method, path):
                    fault.times -= 1
                    return fault.kind
        return None

    def refuses(self, method: str, path: str) -> bool:
        if self.keys is None:
            return False
        access_key, secret_key = self.keys
        return not presigned_holds(
            f"{self.url}{path}", method=method, access_key=access_key, secret_key=secret_key
        )


@contextlib.contextmanager
def running_proxy(upstream: str) -> Iterator[Proxy]:
    """A proxy on a free port of the loopback interface."""
    proxy = Proxy(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            fault = proxy.fault_for(self.command, self.path)
            if fault == "reset":
                self.connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                )
                self.close_connection = True
                self.connection.close()
                return
            if fault == "503":
                self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                return
            if proxy.refuses(self.command, self.path):
                self.answer(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
                return
            if fault == "corrupt":
                body = bytes([body[0] ^ 1]) + body[1:]
            upstream = http.client.HTTPConnection(urlsplit(proxy.upstream).netloc)
            with contextlib.closing(upstream):
                headers = {
                    name: value
                    for name, value in self.headers.items()
                    if name.lower() not in ("connection", "expect", "content-md5")
                }
                upstream.request(self.command, self.path, body, headers)
                reply = upstream.getresponse()
                content = reply.read()
                kept = {
                    name: value
                    for name, value in reply.getheaders()
                    if name.lower() not in ("connection", "transfer-encoding", "date", "server")
                }
                if fault == "wrong etag":
                    kept = {
                        name: '"00"' if name.lower() == "etag" else value
                        for name, value in kept.items()
                    }
                self.answer(reply.status, kept, content)

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name in headers):
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients hang up after a reset

    server = Server(("127.0.0.1", 0), Handler)
    proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
