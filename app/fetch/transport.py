"""Connections that go to checked addresses only, and never outlast their deadline."""

import asyncio
import ssl
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from typing import Any

import httpcore

from app.fetch.errors import DownloadFailed
from app.fetch.policy import FetchPolicy


class Deadline:
    """A moment shared by all reads and writes of a download; moved as its phases pass."""

    def __init__(self) -> None:
        self._at = float("inf")

    def set(self, seconds_from_now: float) -> None:
        self._at = time.monotonic() + seconds_from_now

    def left(self) -> float:
        return self._at - time.monotonic()

    def bound(self, timeout: float | None, error: type[httpcore.TimeoutException]) -> float:
        """The shorter of ``timeout`` and what is left; raises ``error`` when nothing is."""
        left = self.left()
        if left <= 0:
            raise error("the deadline has passed")
        return left if timeout is None else min(timeout, left)


class PinnedBackend(httpcore.NetworkBackend):
    """Resolves a name once, checks every address, connects to exactly those.

    TLS keeps verifying the name (httpcore passes it on as SNI), and the Host header stays. What is
    resolved here is what is connected: no second look-up can give another answer.
    """

    def __init__(self, policy: FetchPolicy, deadline: Deadline) -> None:
        self._policy = policy
        self._deadline = deadline
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Raises `AddressRefused`, or httpcore's error of the last address that was tried."""
        failure: Exception | None = None
        for address in self._policy.addresses(host, port):
            try:
                stream = self._sockets.connect_tcp(
                    str(address),
                    port,
                    self._deadline.bound(timeout, httpcore.ConnectTimeout),
                    local_address,
                    socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _BoundedStream(stream, self._deadline)
        raise failure or httpcore.ConnectError("no address")


class AsyncPinnedBackend(httpcore.AsyncNetworkBackend):
    """The same rules for an event loop. What bounds its time is the caller's `asyncio.timeout`.

    Names are looked up in ``resolving``: a thread of its own keeps a slow look-up out of the way
    of the loop's other work.
    """

    def __init__(self, policy: FetchPolicy, resolving: Executor) -> None:
        self._policy = policy
        self._resolving = resolving
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """As `PinnedBackend.connect_tcp`; what the policy's resolver raises goes through."""
        addresses = await asyncio.get_running_loop().run_in_executor(
            self._resolving, self._policy.addresses, host, port
        )
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._sockets.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or httpcore.ConnectError("no address")


class _BoundedStream(httpcore.NetworkStream):
    """Every read and write ends by the deadline, so a trickle of bytes can't hold it open."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._deadline.bound(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._deadline.bound(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._deadline.bound(timeout, httpcore.ConnectTimeout)
        try:
            secured = self._stream.start_tls(ssl_context, server_hostname, left)
        except httpcore.ConnectError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError):
                raise DownloadFailed(
                    f"The certificate of {server_hostname!r} is not valid."
                ) from error
            raise
        return _BoundedStream(secured, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
