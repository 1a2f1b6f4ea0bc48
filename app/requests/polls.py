"""Status polls, the bulk of all calls: ten a second from every waiting client.

They take a path of their own: no routing, no dependencies, no ORM, and polls that arrive while the
database is being asked are answered by the next question together. An answer is never older than
the call. Whatever is out of the ordinary (logs, an unknown id, a wrong key, an error) goes the
ordinary way.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import structlog
from pydantic_core import to_json
from sqlalchemy import Result, Row, Table, bindparam, case, select
from sqlalchemy.orm import Session
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from app.cors import CrossOrigin
from app.db.engine import AsyncDatabase
from app.db.models import Request, State
from app.errors import REQUEST_ID
from app.replies import is_plain, usual_headers
from app.requests import ids, turns
from app.requests.answers import metrics_of, urls
from app.requests.lengths import QueueLengths
from app.requests.schemas import WIRE_STATUS
from app.requests.turns import Waiting

WITHOUT_LOGS: Final = frozenset({b"", b"logs=0", b"logs=false"})
"""Queries of fal's clients; any other goes the ordinary way."""

Authenticate = Callable[[HttpRequest], Awaitable[str]]

log = structlog.get_logger()

_requests: Table = Request.__table__  # type: ignore[assignment]  # a declared class's table
_STATUSES = select(
    _requests.c.id,
    _requests.c.owner,
    _requests.c.app,
    _requests.c.state,
    _requests.c.stage,
    _requests.c.priority,
    _requests.c.started_at,
    _requests.c.finished_at,
    _requests.c.inference_time,
    _requests.c.error,
    _requests.c.error_type,
    case((_requests.c.state == State.QUEUED, turns.own_ahead(_requests))).label("own_ahead"),
).where(_requests.c.id.in_(bindparam("ids", expanding=True)), _requests.c.expired_at.is_(None))
"""Built once, and not of the ORM: either takes longer than SQLite does."""


class Polled(NamedTuple):
    """What a status says of a request."""

    row: Row[Any]
    position: int | None
    """While it is queued."""


class StatusReader:
    """Rows by id; calls that wait at the same time share one query."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._lengths = QueueLengths()
        self._waiting: list[tuple[str, asyncio.Future[Polled | None]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def find(self, request_id: str) -> Polled | None:
        """None where there is no such request, or it has expired."""
        future: asyncio.Future[Polled | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request_id, future))
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await future

    async def _read(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            found: Mapping[str, Polled] = {}
            failure: Exception | None = None
            try:
                ids = {request_id for request_id, _ in batch}
                found = await self._database.read(poll, ids, self._lengths)
            except Exception as error:
                failure = error
            for request_id, future in batch:
                if future.done():  # who asked has left
                    continue
                if failure is None:
                    future.set_result(found.get(request_id))
                else:
                    future.set_exception(failure)


def poll(session: Session, ids: Iterable[str], lengths: QueueLengths) -> Mapping[str, Polled]:
    """By id, what a status says; of those that exist and have not expired."""
    found: Result[Any] = session.connection().execute(_STATUSES, {"ids": sorted(ids)})
    rows = found.all()
    if not any(row.state == State.QUEUED for row in rows):
        return {row.id: Polled(row, None) for row in rows}
    waiting = lengths.waiting(session, {row.owner for row in rows})
    return {row.id: Polled(row, _position(row, waiting)) for row in rows}


def _position(row: Row[Any], waiting: Waiting) -> int | None:
    if row.state != State.QUEUED:
        return None
    return waiting.position(row.owner, row.priority, row.stage, row.own_ahead)


class StatusPolls:
    """ASGI middleware that answers ``GET .../requests/{id}/status``."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        apps: Mapping[str, str],
        reader: StatusReader,
        authenticate: Authenticate,
        public_url: str,
        outermost: CrossOrigin | None = None,
    ) -> None:
        """``apps``: every prefix of the queue's routes -> its ``owner/alias``.

        ``outermost``: it stands outside `Replies` and adds what that would. It then leaves alone
        what `Replies` may refuse or answer by itself. A second one inside finds polls whose path
        was another when they came (`app/hosts.py`).
        """
        self.app = app
        self._apps = apps
        self._path = re.compile(f"/({'|'.join(map(re.escape, apps))})/requests/({ids.FORM})/status")
        self._reader = reader
        self._authenticate = authenticate
        self._public_url = public_url
        self._outermost = outermost is not None
        self._headers = [
            (b"content-type", b"application/json"),
            *(usual_headers(outermost) if outermost is not None else ()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            asked = self._path.fullmatch(scope["path"])
            if asked is not None and scope["query_string"] in WITHOUT_LOGS:
                plain = not self._outermost or is_plain(scope)
                if plain and await self._answered(scope, send, asked):
                    return
        await self.app(scope, receive, send)

    async def _answered(self, scope: Scope, send: Send, asked: re.Match[str]) -> bool:
        try:
            owner = await self._authenticate(HttpRequest(scope))
            polled = await self._reader.find(asked[2])
        except Exception:  # the ordinary way meets it again, and knows how to tell
            return False
        if polled is None:
            return False
        row = polled.row
        if row.owner != owner or row.app != self._apps[asked[1]]:
            return False
        code = 200 if row.state == State.COMPLETED else 202
        body = to_json(_status(self._public_url, polled))
        headers = [
            *self._headers,
            (b"content-length", str(len(body)).encode()),
            (REQUEST_ID.encode(), row.id.encode()),
        ]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        log.debug("poll", request_id=row.id, status=code)
        return True


def _status(public_url: str, polled: Polled) -> dict[str, Any]:
    """As `schemas.RequestStatus` writes it."""
    row = polled.row
    found: dict[str, Any] = {
        "request_id": row.id,
        **urls(public_url, row),
        "status": WIRE_STATUS[row.state],
    }
    if polled.position is not None:
        found["queue_position"] = polled.position
    found["logs"] = None
    found["metrics"] = metrics_of(row)
    if row.error is not None:
        found["error"] = row.error
    if row.error_type is not None:
        found["error_type"] = row.error_type
    return found
