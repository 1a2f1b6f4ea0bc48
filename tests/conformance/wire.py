"""Between the clients and the gateway: a proxy that takes fal's names here, and a hop with faults.

The proxy answers ``CONNECT`` for fal's hosts and this machine and hands the bytes on as they are:
TLS is the gateway's own. Where a check counts calls or needs a fault, the proxy leads to the hop
instead. It ends TLS as a reverse proxy in front of the service would, remembers every call, and
answers some of them itself when told to.
"""

import asyncio
import contextlib
import json
import re
import ssl
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.conformance.tls import FAL_HOSTS, Certificates

HOSTS_HERE = (*FAL_HOSTS, "localhost", "127.0.0.1")
CHUNK = 256 * 1024
HEAD_LIMIT = 64 * 1024

T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Call:
    """One HTTP request that went through the hop."""

    method: str
    host: str
    path: str
    """With its query."""
    headers: dict[str, str] = field(repr=False)
    """Names in lower case."""
    status: int
    """Of the reply; 0: none came."""


@dataclass
class Fault:
    """What the hop answers by itself to the next ``times`` calls that match."""

    status: int
    method: str
    path: str
    """A regular expression, found anywhere in the path."""
    times: int
    body: dict[str, Any] = field(default_factory=lambda: {"detail": "a fault of the test"})


class Listener:
    """A server on a free port; `_serve` gets each connection, which is closed afterwards."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, ssl=self._tls, limit=HEAD_LIMIT
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError):
            pass  # one of the two went away
        finally:
            await _close(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class Hop(Listener):
    """An HTTPS server that hands calls on to the gateway, one connection for each."""

    def __init__(self, certificates: Certificates, gateway_port: int) -> None:
        super().__init__(certificates.server())
        self._trust = certificates.client()
        self._gateway_port = gateway_port
        self._faults: list[Fault] = []
        self.calls: list[Call] = []

    def fault(self, status: int, method: str, path: str, times: int) -> Fault:
        """Its ``times`` counts down to 0 as it is used."""
        fault = Fault(status, method, path, times)
        self._faults.append(fault)
        return fault

    def reset(self) -> None:
        self._faults.clear()
        self.calls.clear()

    def called(self, method: str, path: str) -> list[Call]:
        """Calls whose path matches, oldest first."""
        return [c for c in self.calls if c.method == method and re.search(path, c.path)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, path, _ = first.split(" ")
        headers = {n.strip().lower(): v.strip() for n, _, v in (s.partition(":") for s in lines)}
        host = headers.get("host", "")
        fault = self._fault_for(method, f"{host}{path}")
        if fault is None:
            kept = [line for line in lines if not line.lower().startswith("connection:")]
            head = "\r\n".join([first, *kept, "Connection: close", "", ""]).encode("latin-1")
            await self._hand_on(reader, writer, head, (method, host, path, headers))
        else:
            await reader.readexactly(int(headers.get("content-length", "0")))
            self.calls.append(Call(method, host, path, headers, fault.status))
            body = json.dumps(fault.body).encode()
            writer.write(
                f"HTTP/1.1 {fault.status} Fault\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            )
            writer.write(body)
            await writer.drain()

    def _fault_for(self, method: str, target: str) -> Fault | None:
        for fault in self._faults:
            if fault.times and fault.method == method and re.search(fault.path, target):
                fault.times -= 1
                return fault
        return None

    async def _hand_on(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: bytes,
        call: tuple[str, str, str, dict[str, str]],
    ) -> None:
        upstream = await asyncio.open_connection(
            "127.0.0.1",
            self._gateway_port,
            ssl=self._trust,
            server_hostname="localhost",
        )
        upstream[1].write(head)
        sending = asyncio.create_task(_pipe(reader, upstream[1]))
        try:
            answer = await upstream[0].readuntil(b"\r\n")
            self.calls.append(Call(*call, status=int(answer.split(b" ")[1])))
            writer.write(answer)
            await _pipe(upstream[0], writer)
        except asyncio.IncompleteReadError:
            self.calls.append(Call(*call, status=0))
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await _close(upstream[1])


class ConnectProxy(Listener):
    """What ``HTTPS_PROXY`` names. Every host of ours ends at one port of this machine."""

    def __init__(self, target_port: int) -> None:
        super().__init__()
        self._target_port = target_port
        self.refused: list[str] = []
        """Hosts that a client wanted and that are none of ours."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode("latin-1").split("\r\n")[0].split(" ")
        host = target.rpartition(":")[0]
        if method == "CONNECT" and host in HOSTS_HERE:
            await self._tunnel(reader, writer)
        else:
            self.refused.append(target)
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection("127.0.0.1", self._target_port)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        ways = [
            asyncio.create_task(_pipe(reader, upstream[1])),
            asyncio.create_task(_pipe(upstream[0], writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            await _close(upstream[1])


@contextlib.contextmanager
def wire(certificates: Certificates, gateway_port: int) -> Iterator[tuple[ConnectProxy, Hop, str]]:
    """The proxy to the gateway, the hop, and the URL of the proxy to the hop."""
    loop = Loop()
    try:
        hop = Hop(certificates, gateway_port)
        loop.run(hop.start())
        proxy, counting = ConnectProxy(gateway_port), ConnectProxy(hop.port)
        loop.run(proxy.start())
        loop.run(counting.start())
        try:
            yield proxy, hop, counting.url
        finally:
            for listener in (counting, proxy, hop):
                loop.run(listener.close())
    finally:
        loop.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(CHUNK):
        writer.write(chunk)
        await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _cancel_others() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
