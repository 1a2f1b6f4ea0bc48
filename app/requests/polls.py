"""Status polls, the bulk of all calls: ten a second from every waiting client.

They take a path of their own: no routing, no dependencies, no ORM, and polls that arrive while the
database is being asked are answered by the next question together. An answer is never older than
the call. Whatever is out of the ordinary (logs, an unknown id, a wrong key, an error) goes the
ordinary way.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final

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
from app.keys import limits
from app.replies import is_plain, usual_headers
from app.requests import ids, repository
from app.requests.answers import metrics_of, urls
from app.requests.schemas import WIRE_STATUS

WITHOUT_LOGS: Final = frozenset({b"", b"logs=0", b"logs=false"})
"""Queries of fal's clients; any other goes the ordinary way."""

Authenticate = Callable[[HttpRequest], Awaitable[str]]

log = structlog.get_logger()

_requests: Table = Request.__table__  # type: ignore[assignment]  # a declared class's table
_STATUSES = {
    some_passed_over: select(
        _requests.c.id,
        _requests.c.owner,
        _requests.c.app,
        _requests.c.state,
        _requests.c.started_at,
        _requests.c.finished_at,
        _requests.c.inference_time,
        _requests.c.error,
        _requests.c.error_type,
        case(
            (
                _requests.c.state == State.QUEUED,
                repository.num_ahead(_requests, some_passed_over=some_passed_over),
            )
        ).label("position"),
    ).where(_requests.c.id.in_(bindparam("ids", expanding=True)), _requests.c.expired_at.is_(None))
    for some_passed_over in (False, True)
}
"""Built once, and not of the ORM: either takes longer than SQLite does."""


class StatusReader:
    """Rows by id; calls that wait at the same time share one query."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._waiting: list[tuple[str, asyncio.Future[Row[Any] | None]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def row(self, request_id: str) -> Row[Any] | None:
        """None where there is no such request, or it has expired."""
        future: asyncio.Future[Row[Any] | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request_id, future))
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return await future

    async def _read(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            rows: Mapping[str, Row[Any]] = {}
            failure: Exception | None = None
            try:
                rows = await self._database.read(rows_of, {request_id for request_id, _ in batch})
            except Exception as error:
                failure = error
            for request_id, future in batch:
                if future.done():  # who asked has left
                    continue
                if failure is None:
                    future.set_result(rows.get(request_id))
                else:
                    future.set_exception(failure)


def rows_of(session: Session, ids: Iterable[str]) -> Mapping[str, Row[Any]]:
    """By id, what a status says; of those that exist and have not expired."""
    passed_over = limits.passed_over(session)
    parameters = {"ids": sorted(ids)} | ({"passed_over": passed_over} if passed_over else {})
    found: Result[Any] = session.connection().execute(_STATUSES[bool(passed_over)], parameters)
    return {row.id: row for row in found}


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
            row = await self._reader.row(asked[2])
        except Exception:  # the ordinary way meets it again, and knows how to tell
            return False
        if row is None or row.owner != owner or row.app != self._apps[asked[1]]:
            return False
        code = 200 if row.state == State.COMPLETED else 202
        body = to_json(_status(self._public_url, row))
        headers = [
            *self._headers,
            (b"content-length", str(len(body)).encode()),
            (REQUEST_ID.encode(), row.id.encode()),
        ]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        log.debug("poll", request_id=row.id, status=code)
        return True


def _status(public_url: str, row: Row[Any]) -> dict[str, Any]:
    """As `schemas.RequestStatus` writes it."""
    found: dict[str, Any] = {
        "request_id": row.id,
        **urls(public_url, row),
        "status": WIRE_STATUS[row.state],
    }
    if row.position is not None:
        found["queue_position"] = row.position
    found["logs"] = None
    found["metrics"] = metrics_of(row)
    if row.error is not None:
        found["error"] = row.error
    if row.error_type is not None:
        found["error_type"] = row.error_type
    return found
