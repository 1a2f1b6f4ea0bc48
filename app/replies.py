"""What every reply has: a request id, an answer to every exception, one line in the log."""

import errno
import random
import time
import uuid
from collections.abc import Mapping
from typing import Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.cors import CrossOrigin
from app.errors import (
    ERROR_TYPE,
    REQUEST_ID,
    InvalidInput,
    ServiceError,
    Unavailable,
    request_error,
)
from app.hosts import trimmed
from app.storage import StorageError

MAX_TARGET_BYTES: Final = 16 * 1024
"""Path and query: a webhook URL of 2,048 characters, every one escaped, fits twice."""
MAX_HEADER_BYTES: Final = 32 * 1024
"""All headers together."""
MAX_SHOWN_PATH: Final = 200
CLIENT_GONE: Final = 499
DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

NO_SNIFFING: Final = ("x-content-type-options", "nosniff")

log = structlog.get_logger()


class Replies:
    """ASGI middleware around everything else, so that refusals of others pass through it too."""

    def __init__(self, app: ASGIApp, cross_origin: CrossOrigin | None = None) -> None:
        self.app = app
        self._cross_origin = cross_origin or CrossOrigin()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reply_id = _new_id()
        scope.setdefault("state", {})["reply_id"] = reply_id
        scope["path"] = trimmed(scope["path"])
        # As it came: on its way to a route it may become another (`app/hosts.py`).
        arrived = {"path": scope["path"], "headers": scope["headers"]}
        started = time.perf_counter()
        status, request_id = 0, reply_id

        async def send_reply(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                # The id of the request it is about, where it is about one.
                request_id = headers.setdefault(REQUEST_ID, reply_id)
                headers.setdefault(*NO_SNIFFING)
                self._cross_origin.decorate(arrived, headers)
            await send(message)

        with structlog.contextvars.bound_contextvars(reply_id=reply_id):
            answer = _too_large(scope) or self._cross_origin.answer(scope)
            try:
                await (answer or self.app)(scope, receive, send_reply)
            except Exception as error:
                if not status:
                    await _bug(scope, error)(scope, receive, send_reply)
                raise
            # Clients poll ten times a second: reads are for debugging.
            write = log.debug if scope["method"] == "GET" and status < 500 else log.info
            write(
                "http",
                method=scope["method"],
                path=_route_of(scope),
                status=status,
                request_id=request_id,
                ms=round((time.perf_counter() - started) * 1000, 1),
            )


def is_plain(scope: Scope) -> bool:
    """Whether `Replies` would pass the call on as it is: no page asks, and nothing is too large."""
    return _too_large(scope) is None and all(name != b"origin" for name, _ in scope["headers"])


def usual_headers(cross_origin: CrossOrigin) -> list[tuple[bytes, bytes]]:
    """What `Replies` adds to the reply to such a call, beside its id."""
    headers = MutableHeaders(dict([NO_SNIFFING]))
    cross_origin.decorate({"path": "/", "headers": []}, headers)
    return headers.raw


def _new_id() -> str:
    """Names a reply. No secret, so it needs no system call."""
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def _route_of(scope: Scope) -> str:
    """The route's template: a file's path is a permission to read it, and stays out of logs."""
    route = scope.get("route")
    return str(route.path if route is not None else scope["path"][:MAX_SHOWN_PATH])


def _too_large(scope: Scope) -> Response | None:
    target = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
    if target > MAX_TARGET_BYTES:
        return _flat("uri_too_long", "The URL is too long.", 414)
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        return _flat("headers_too_large", "The headers are too large.", 431)
    return None


def install(app: FastAPI, cross_origin: CrossOrigin | None = None) -> None:
    """Exception handlers, and the middleware around the others: call it after adding them."""
    app.add_middleware(Replies, cross_origin=cross_origin)
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameters)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    for kind in (OperationalError, InterfaceError, PoolTimeout, ConnectionError, StorageError):
        app.add_exception_handler(kind, _unavailable)
    app.add_exception_handler(OSError, _disk_full)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error.response()


async def _invalid_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return InvalidInput.found(error.errors()).response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        path = request.url.path[:MAX_SHOWN_PATH]
        return _flat("not_found", f"Path {path} not found", 404, headers)
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_at(request))
        return _flat("method_not_allowed", str(error.detail), 405, headers)
    return _flat("bad_request", str(error.detail), error.status_code, headers)


def _methods_at(request: Request) -> list[str]:
    """Of all routes of this path; Starlette's own answer knows the first one's only."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE:
            methods |= route.methods or set()
    return sorted(methods)


async def _client_gone(request: Request, error: Exception) -> Response:
    return _flat("client_disconnected", "Client disconnected.", CLIENT_GONE)


async def _unavailable(request: Request, error: Exception) -> Response:
    log.error("http.unavailable", error=repr(error))
    return Unavailable().response()


async def _disk_full(request: Request, error: Exception) -> Response:
    """An upload did not fit: the operator's matter, and another time it may. Other errors of the
    system are bugs."""
    assert isinstance(error, OSError)
    if error.errno not in DISK_FULL:
        raise error
    return await _unavailable(request, error)


def _bug(scope: Scope, error: Exception) -> Response:
    log.error("http.failed", path=_route_of(scope), exc_info=error)
    return _flat("internal_error", "Internal Server Error", 500)


def _flat(
    error_type: str, detail: str, status: int, headers: Mapping[str, str] | None = None
) -> Response:
    return JSONResponse(
        request_error(error_type, detail), status, {ERROR_TYPE: error_type, **(headers or {})}
    )
