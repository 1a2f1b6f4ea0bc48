"""Status polls, the bulk of all calls: ten a second from every waiting client.

They take a path of their own: no routing, no dependencies, no ORM, and polls that arrive while the
database is being asked are answered by the next question together. An answer is never older than
the call. Whatever is out of the ordinary (logs, an unknown id, an error) goes the ordinary way.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Row, and_, case, func, or_, select
from sqlalchemy.orm import Session, aliased
from starlette.requests import Request as HttpRequest
from starlette.types import ASGIApp, Receive, Scope, Send

from app.db.engine import AsyncDatabase
from app.db.models import Request, State
from app.errors import REQUEST_ID, ServiceError
from app.requests.answers import metrics_of, urls
from app.requests.options import wants
from app.requests.schemas import WIRE_STATUS

ID: Final = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

Authenticate = Callable[[HttpRequest], Awaitable[str]]

_ahead = aliased(Request)
_POSITION = case(
    (
        Request.state == State.QUEUED,
        select(func.count())
        .select_from(_ahead)
        .where(
            _ahead.state == State.QUEUED,
            or_(
                _ahead.priority < Request.priority,
                and_(_ahead.priority == Request.priority, _ahead.number < Request.number),
            ),
        )
        .correlate(Request)
        .scalar_subquery(),
    )
).label("position")
_COLUMNS = (
    Request.id,
    Request.owner,
    Request.app,
    Request.state,
    Request.started_at,
    Request.finished_at,
    Request.inference_time,
    Request.error,
    Request.error_type,
    _POSITION,
)


class StatusReader:
    """Rows by id; calls that wait at the same time share one query."""

    def __init__(self, database: AsyncDatabase) -> None:
        self._database = database
        self._next: _Batch | None = None
        self._reading: asyncio.Task[None] | None = None

    async def row(self, request_id: str) -> Row[Any] | None:
        """None where there is no such request, or it has expired."""
        if self._next is None:
            self._next = _Batch()
        batch = self._next
        batch.ids.add(request_id)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return (await asyncio.shield(batch.rows)).get(request_id)

    async def _read(self) -> None:
        while self._next is not None:
            batch, self._next = self._next, None
            try:
                batch.rows.set_result(await self._database.read(_rows, batch.ids))
            except Exception as error:
                batch.rows.set_exception(error)


@dataclass
class _Batch:
    ids: set[str] = field(default_factory=set)
    rows: "asyncio.Future[Mapping[str, Row[Any]]]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def _rows(session: Session, ids: Iterable[str]) -> Mapping[str, Row[Any]]:
    found = session.execute(
        select(*_COLUMNS).where(Request.id.in_(sorted(ids)), Request.expired_at.is_(None))
    )
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
    ) -> None:
        """``apps``: every prefix of the queue's routes -> its ``owner/alias``."""
        self.app = app
        self._apps = apps
        self._path = re.compile(f"/({'|'.join(map(re.escape, apps))})/requests/({ID})/status")
        self._reader = reader
        self._authenticate = authenticate
        self._public_url = public_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "GET":
            asked = self._path.fullmatch(scope["path"])
            if asked is not None and await self._answered(scope, receive, send, asked):
                return
        await self.app(scope, receive, send)

    async def _answered(
        self, scope: Scope, receive: Receive, send: Send, asked: re.Match[str]
    ) -> bool:
        request = HttpRequest(scope)
        if wants(request, "logs"):
            return False
        try:
            owner = await self._authenticate(request)
        except ServiceError as error:
            await error.response()(scope, receive, send)
            return True
        try:
            row = await self._reader.row(asked[2])
        except Exception:  # the ordinary way meets it again, and knows how to tell
            return False
        if row is None or row.owner != owner or row.app != self._apps[asked[1]]:
            return False
        body = json.dumps(_status(self._public_url, row), ensure_ascii=False).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (REQUEST_ID.encode(), row.id.encode()),
        ]
        code = 200 if row.state == State.COMPLETED else 202
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": body})
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
