"""A loopback server that answers each connection by a script, byte for byte."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Script = Callable[[socket.socket, str], None]
"""Answers one request: gets the connection and the request's head. Returning closes it."""


@dataclass
class ScriptedServer:
    """``scripts`` answer one connection each; the last one answers all that follow."""

    port: int
    scripts: list[Script] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    """Request heads, in order."""
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/files/clips.zip"

    def header(self, request: int, name: str) -> str | None:
        """A header of a request that came."""
        for line in self.heads[request].split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.lower() == name:
                return value.strip()
        return None


@contextlib.contextmanager
def scripted_server(tls: ssl.SSLContext | None = None) -> Iterator[ScriptedServer]:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    server = ScriptedServer(listener.getsockname()[1])
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            connection.settimeout(5)
            if tls is not None:
                connection = stack.enter_context(tls.wrap_socket(connection, server_side=True))
            head = b""
            while b"\r\n\r\n" not in head:
                received = connection.recv(65536)
                if not received:
                    return
                head += received
            server.heads.append(head.decode("latin-1"))
            script = server.scripts[min(len(server.heads), len(server.scripts)) - 1]
            script(connection, server.heads[-1])

    def accept() -> None:
        while not server.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve, args=(connection,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield server
    finally:
        server.stopping.set()
        accepting.join()
        for thread in threads:
            thread.join()
        listener.close()


def answer(
    body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None
) -> Script:
    """A whole answer; ``length`` lies about its size."""

    def script(connection: socket.socket, head: str) -> None:
        size = len(body) if length is None else length
        lines = (f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *headers)
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return script


def then_reset(script: Script) -> Script:
    """The answer so far, then RST instead of an end."""

    def broken(connection: socket.socket, head: str) -> None:
        script(connection, head)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    return broken


def raw(*parts: bytes) -> Script:
    """Exactly these bytes."""

    def script(connection: socket.socket, head: str) -> None:
        for part in parts:
            connection.sendall(part)

    return script
