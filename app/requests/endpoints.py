"""fal's queue over HTTP, one set of routes per mode of the registry.

A request is found under three prefixes: ``/{owner}/{alias}`` (what fal's clients use), the full
endpoint id, and the mode's short path. The URLs handed out are of the first form.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.routing import BaseRoute

from app.auth import Authenticator
from app.db.models import Purpose, State
from app.db.models import Request as Row
from app.errors import (
    BILLABLE_UNITS,
    ERROR_TYPE,
    REQUEST_ID,
    RETRYABLE,
    TIMEOUT_TYPE,
    AlreadyCompleted,
    BadRequest,
    InvalidInput,
    NotFound,
    UnknownRequest,
)
from app.hosts import RUN_PREFIX
from app.modes.base import AnyMode
from app.requests import lifecycle, schemas
from app.requests.body import read_json_bytes
from app.requests.files import read_report, signed
from app.requests.ids import RowId, is_id
from app.requests.options import SubmitOptions, wants
from app.requests.repeats import REPLAYED
from app.requests.run import wait_for_end
from app.requests.service import Asked, RequestService
from app.requests.stream import follow
from app.storage import Storage

CHECK: Final = "check"
"""Below a mode's path: the same body, prepared and reported on, and nothing else."""

Endpoint = Callable[..., Awaitable[Response]]


class DirectRoute(APIRoute):
    """A route whose endpoint takes the request and gives the response: for the busiest ones, where
    resolving parameters and dependencies costs as much as the work."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        return self.endpoint


def make_router(
    modes: Iterable[AnyMode],
    service: RequestService,
    authenticate: Authenticator,
    storage: Storage,
    *,
    run_wait_s: float,
) -> APIRouter:
    """Routes of all ``modes``."""
    router = APIRouter()
    modes = tuple(modes)
    for mode in modes:
        for purpose in Purpose:
            _add_submit(router, mode, purpose, service, authenticate, storage, run_wait_s)
    for prefix, app in prefixes_of(modes).items():
        _add_queue(router, prefix, app, service, authenticate, storage)
    # They are tried one by one, for every call: what is called most comes first.
    router.routes.sort(
        key=lambda route: not getattr(route, "operation_id", "").startswith("submit")
    )
    return router


def _name_of(route: BaseRoute) -> str:
    return (route.operation_id or "") if isinstance(route, APIRoute) else ""


def prefixes_of(modes: Iterable[AnyMode]) -> dict[str, str]:
    """Where requests are found -> the app whose requests those are."""
    prefixes: dict[str, str] = {}
    for mode in modes:
        prefixes |= {mode.app: mode.app, mode.id: mode.app, mode.path: mode.app}
        prefixes |= {f"{mode.id}/{CHECK}": mode.app, f"{mode.path}/{CHECK}": mode.app}
    return prefixes


def _add_submit(
    router: APIRouter,
    mode: AnyMode,
    purpose: Purpose,
    service: RequestService,
    authenticate: Authenticator,
    storage: Storage,
    run_wait_s: float,
) -> None:
    is_check = purpose == Purpose.CHECK
    action, suffix = ("check", f"/{CHECK}") if is_check else ("submit", "")

    async def accept(request: Request, owner: str) -> tuple[schemas.Submitted, bool]:
        options = SubmitOptions.of(request)
        body = await read_json_bytes(request)
        try:
            given = mode.request_model.model_validate_json(body)
        except ValidationError as error:
            raise InvalidInput.of(error) from None
        return await service.submit(mode, owner, given, options, purpose)

    async def submit(request: Request) -> Response:
        submitted, repeated = await accept(request, await authenticate(request))
        answer = _json(submitted, 200, submitted.request_id)
        if repeated:
            answer.headers[REPLAYED] = "true"
        return answer

    async def run(request: Request) -> Response:
        owner = await authenticate(request)
        submitted, _ = await accept(request, owner)
        await wait_for_end(service, submitted, request.receive, run_wait_s)
        row = await service.get(Asked(mode.app, submitted.request_id, owner, service.retention_s))
        return await _result_of(row, storage)

    document: dict[str, Any] = {
        "summary": f"{mode.title}: {mode.check_title}" if is_check else mode.title,
        "description": mode.check_summary if is_check else mode.summary,
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {"$ref": f"#/components/schemas/{mode.request_model.__name__}"}
                    }
                },
            }
        },
    }
    for path in (mode.id, mode.path):
        name = f"{mode.path}_at_{path}".replace("/", "_")
        router.add_api_route(
            f"/{path}{suffix}",
            submit,
            methods=["POST"],
            operation_id=f"{action}_{name}",
            response_model=schemas.Submitted,
            route_class_override=DirectRoute,
            **document,
        )
        router.add_api_route(
            f"{RUN_PREFIX}/{path}{suffix}",
            run,
            methods=["POST"],
            operation_id=f"run_{action}_{name}",
            response_model=dict[str, Any],
            route_class_override=DirectRoute,
            include_in_schema=path == mode.id,
            **document,
        )


def _add_queue(
    router: APIRouter,
    prefix: str,
    app: str,
    service: RequestService,
    authenticate: Authenticator,
    storage: Storage,
) -> None:
    async def asked(
        request_id: Annotated[str, Path()], owner: Annotated[str, Depends(authenticate)]
    ) -> Asked:
        if not is_id(request_id):
            raise UnknownRequest
        return Asked(app, request_id, owner, service.retention_s)

    async def status(request: Request, asked: Annotated[Asked, Depends(asked)]) -> Response:
        found = await service.status(asked, wants(request, "logs"))
        code = 200 if found.status == "COMPLETED" else 202
        return _json(found, code, found.request_id)

    async def result(asked: Annotated[Asked, Depends(asked)]) -> Response:
        return await _result_of(await service.get(asked), storage)

    async def stream(request: Request, asked: Annotated[Asked, Depends(asked)]) -> Response:
        permitted = partial(authenticate, request)
        return await follow(service, asked, wants(request, "logs"), permitted)

    async def cancel(asked: Annotated[Asked, Depends(asked)]) -> Response:
        answer = await service.cancel(asked)
        if answer == lifecycle.CancelAnswer.ALREADY_COMPLETED:
            raise AlreadyCompleted
        if answer == lifecycle.CancelAnswer.NOT_FOUND:
            raise UnknownRequest
        return JSONResponse({"status": answer}, 202, {REQUEST_ID: asked.request_id})

    async def report(asked: Annotated[Asked, Depends(asked)]) -> Response:
        row = await service.get(asked)
        found = await asyncio.to_thread(read_report, storage, row.storage_prefix)
        if found is None:
            raise NotFound("This request has no report (yet).")
        return Response(found, 200, {REQUEST_ID: row.id}, media_type="application/json")

    async def events(
        asked: Annotated[Asked, Depends(asked)],
        after: RowId = 0,
    ) -> Response:
        found = await service.events(asked, after)
        body = await asyncio.to_thread(signed, storage, found.model_dump())
        return JSONResponse(body, 200, {REQUEST_ID: asked.request_id})

    base = f"/{prefix}/requests/{{request_id}}"
    for path, method, endpoint, answer in (
        (f"{base}/status", "GET", status, schemas.RequestStatus),
        (f"{base}/status/stream", "GET", stream, schemas.RequestStatus),
        (base, "GET", result, dict[str, Any]),
        (f"{base}/response", "GET", result, dict[str, Any]),
        (f"{base}/cancel", "PUT", cancel, schemas.CancelAnswer),
        (f"{base}/report", "GET", report, dict[str, Any]),
        (f"{base}/events", "GET", events, schemas.Events),
    ):
        router.add_api_route(
            path,
            endpoint,
            methods=[method],
            response_model=answer,
            # The other forms are for clients that build them; one form is enough to read about.
            include_in_schema=prefix == app and not path.endswith("/response"),
            operation_id=f"{endpoint.__name__}_{prefix.replace('/', '_')}_{path.count('/')}",
        )


def _json(answer: BaseModel, status: int, request_id: str) -> Response:
    body = answer.model_dump_json()
    return Response(body, status, {REQUEST_ID: request_id}, media_type="application/json")


async def _result_of(row: Row, storage: Storage) -> Response:
    """The model's own answer, replayed. Raises `BadRequest` while there is none."""
    if row.state != State.COMPLETED:
        raise BadRequest("Request is still in progress", {REQUEST_ID: row.id})
    assert row.result_status is not None
    body = await asyncio.to_thread(signed, storage, row.result_body)
    headers = {REQUEST_ID: row.id, BILLABLE_UNITS: str(row.billable_units or 0)}
    if row.error_type is not None:
        headers |= {RETRYABLE: "false"}
        # fal's request errors are flat and name their type in a header; a model's are not.
        if isinstance(body.get("detail"), str):
            headers[ERROR_TYPE] = row.error_type
        if row.error_type == "request_timeout":
            headers[TIMEOUT_TYPE] = "user"
    return JSONResponse(body, row.result_status, headers)
