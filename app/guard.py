"""Connections that only cost: closed by the clock, by their size, and by their number.

uvicorn has no time limit for a head, for the rest of a body that nobody reads, or for a client that
does not take its answer, and no limit for the size of a head (`spec/reliability.md` 0.11). What a
body may take is the business of who reads it (`app/requests/body.py`, `app/storage/receiving.py`).
"""

import asyncio
import contextlib
import json
import resource
import socket
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.replies import MAX_TARGET_BYTES

HEAD_TIMEOUT_S: Final = 10.0
"""For request line and headers, and for the rest of a body whose request was answered already: a
few packets, of which the slowest link needs one second each."""

READ_TIMEOUT_S: Final = 15.0
"""In which a client takes something of its answer, 48 kB at least: 3 kB/s."""

MAX_HEAD_BYTES: Final = 64 * 1024
"""Unparsed bytes of a connection: twice what `app/replies.py` accepts, so that it still answers."""

MAX_FILES: Final = 65_536
"""File descriptors a gateway asks for; each connection is one."""

UNSENT_BYTES: Final = 128 * 1024
"""The kernel takes no more ahead of the network. Else it swallows megabytes, and a slow reader
looks like a dead one for minutes."""

log = structlog.get_logger()


def raise_file_limit() -> int:
    """Open files this process may have, after asking for `MAX_FILES`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS knows other limits
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def max_connections(files: int) -> int:
    """How many clients ``files`` descriptors suffice for: the database, the store and uploads under
    way need some, too."""
    return files - max(64, files // 4)


@dataclass
class _Refusal:
    status: HTTPStatus
    error_type: str
    detail: str

    def head_and_body(self) -> bytes:
        body = json.dumps({"detail": self.detail, "error_type": self.error_type}).encode()
        lines = (
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"x-fal-error-type: {self.error_type}",
            "connection: close",
            *(["retry-after: 2"] if self.status == HTTPStatus.TOO_MANY_REQUESTS else []),
        )
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


_TOO_LARGE: Final = _Refusal(
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "The headers are too large."
)
_URI_TOO_LONG: Final = _Refusal(
    HTTPStatus.REQUEST_URI_TOO_LONG, "uri_too_long", "The URL is too long."
)
# 429, since fal's Python client repeats that and no 503 of ours (`fal-protocol.md` 1.5).
_TOO_MANY: Final = _Refusal(
    HTTPStatus.TOO_MANY_REQUESTS, "too_many_connections", "Too many connections. Try again."
)


def guarded(limit: int) -> type[HttpToolsProtocol]:
    """uvicorn's protocol with the guard, for at most ``limit`` connections at a time."""
    return type("Guarded", (GuardedProtocol,), {"max_connections": limit})


class GuardedProtocol(HttpToolsProtocol):
    """One connection. A timer runs only while the client owes something."""

    max_connections = MAX_FILES

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._unparsed = 0
        self._receiving = False
        """A request's head or body is under way."""
        self._waiting: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= self.max_connections:
            self.transport = transport
            self._refuse(_TOO_MANY)
            return
        super().connection_made(transport)
        _keep_kernel_buffer_small(transport)
        self._expect_more()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEAD_BYTES:
            self._refuse(_TOO_LARGE)
        elif self._owes():
            self._expect_more()
        else:
            self._stop_waiting()

    def send_400_response(self, msg: str) -> None:
        """What the parser can't read; a URL of 64 KiB and more among it, which is only too long."""
        if len(self.url or b"") > MAX_TARGET_BYTES:
            self._refuse(_URI_TOO_LONG)
        else:
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._receiving = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unparsed = 0
        self._receiving = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._receiving:
            self._unset_keepalive_if_required()
            self._expect_more()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(READ_TIMEOUT_S, self._nobody_reads)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _owes(self) -> bool:
        """Whether it is the client's turn: nothing of its is being answered."""
        if self.cycle is None or self.cycle.response_complete:
            return self._receiving or self.timeout_keep_alive_task is None
        return False

    def _expect_more(self) -> None:
        """The client has `HEAD_TIMEOUT_S` in all, not from one byte to the next."""
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_TIMEOUT_S, self._nothing_came)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _nothing_came(self) -> None:
        self._waiting = None
        if self._owes():
            self.transport.close()

    def _nobody_reads(self) -> None:
        log.info("connection.not_read", client=str(self.client))
        self.transport.abort()

    def _refuse(self, refusal: _Refusal) -> None:
        if not self.transport.is_closing():
            self.transport.write(refusal.head_and_body())
            self.transport.close()

    def _cancel_timers(self) -> None:
        self._stop_waiting()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


def _keep_kernel_buffer_small(transport: asyncio.Transport) -> None:
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if connection is not None and option is not None:
        with contextlib.suppress(OSError, AttributeError):
            connection.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES)
