"""A request's status as server-sent events (`fal-protocol.md` 1.4, C33).

Each event is what the status route answers, at once and then at every change, with the log lines
that no earlier event had: fal's JavaScript client appends them to its own list. The stream ends
after COMPLETED.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, Protocol

import structlog
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.errors import REQUEST_ID, NotAuthenticated, Unavailable
from app.requests.schemas import RequestStatus
from app.requests.service import Asked, RequestService
from app.requests.watch import Snapshot

COMMENT_EVERY_S: Final = 15.0
"""fal's own; Node closes a body that is silent for 300 s, proxies often after 60 s."""
COMMENT: Final = b": still here\n\n"

log = structlog.get_logger()


Permitted = Callable[[], Awaitable[object]]
"""Raises `NotAuthenticated` once the listener may know no more: a key may be revoked during a
training of hours."""


class Listener(Protocol):
    """Somebody who is told of a request's changes."""

    def news(self, now: Snapshot) -> AsyncGenerator[bytes, None]:
        """Events that make ``now`` known; none where it is known already."""


async def follow(
    service: RequestService, asked: Asked, with_logs: bool, permitted: Permitted
) -> Response:
    """The stream of one request. Raises `UnknownRequest`, before anything is sent."""
    first = await service.snapshot(asked)
    told = Told(service, asked.request_id, with_logs)
    return EventStream(changes(service, told, first, permitted), {REQUEST_ID: asked.request_id})


class Told:
    """What one listener knows already."""

    def __init__(self, service: RequestService, request_id: str, with_logs: bool) -> None:
        self._service = service
        self._request_id = request_id
        self._with_logs = with_logs
        self._status: RequestStatus | None = None
        self._last_line = 0

    async def news(self, now: Snapshot) -> AsyncGenerator[bytes, None]:
        while now.status != self._status or (self._with_logs and now.last_line > self._last_line):
            lines = None
            if self._with_logs:
                found = await self._service.new_lines(self._request_id, self._last_line)
                lines = [entry for _, entry in found]
                # Lines that were deleted meanwhile are not waited for.
                self._last_line = max(self._last_line, found[-1][0] if found else now.last_line)
            self._status = now.status
            yield _event(now.status.model_copy(update={"logs": lines}))


async def changes(
    service: RequestService, listener: Listener, first: Snapshot, permitted: Permitted
) -> AsyncGenerator[bytes, None]:
    """What is new in ``first`` and after it, until COMPLETED; comments in between."""
    now = first
    async for event in listener.news(now):
        yield event
    if now.completed:
        return
    watching = service.watcher.changes(now.status.request_id, COMMENT_EVERY_S)
    async with contextlib.aclosing(watching) as looks:
        async for changed in looks:
            if not await _holds(permitted):
                return
            now = changed or now
            if changed is None:
                yield COMMENT
            try:
                # After silence too: lines that could not be read at the change are due.
                async for event in listener.news(now):
                    yield event
            except SQLAlchemyError as error:
                log.warning("stream.news_unread", error=repr(error))


async def _holds(permitted: Permitted) -> bool:
    try:
        await permitted()
    except NotAuthenticated:
        return False
    except Unavailable:
        pass  # nobody can be asked now, and there is nothing new to read either
    return True


def _event(status: RequestStatus) -> bytes:
    # JSON has no raw line breaks, so one data line holds it.
    return b"data: " + status.model_dump_json().encode() + b"\n\n"


class EventStream(Response):
    """Sends events as they come, and stops at once when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        super().__init__(
            headers={
                "cache-control": "no-cache, no-transform",
                "x-accel-buffering": "no",  # nginx hands events on instead of collecting them
                **headers,
            }
        )
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        except OSError:
            log.debug("stream.client_left")
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left; whatever it still sends is passed over."""
    while (await receive())["type"] != "http.disconnect":
        pass
