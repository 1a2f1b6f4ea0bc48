"""fal's queue over HTTP, one set of routes per mode of the registry.

A request is found under three prefixes: ``/{owner}/{alias}`` (what fal's clients use), the full
endpoint id, and the mode's short path. The URLs handed out are of the first form.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError

from app.auth import Authenticator
from app.db.models import Purpose, State
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
from app.modes.base import AnyMode
from app.requests import lifecycle, schemas
from app.requests.body import read_json_bytes
from app.requests.files import read_report, signed
from app.requests.options import SubmitOptions, wants
from app.requests.repeats import REPLAYED
from app.requests.service import Asked, RequestService
from app.storage import Storage

ID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MAX_EVENT_ID: Final = (1 << 63) - 1
CHECK: Final = "check"
"""Below a mode's path: the same body, prepared and reported on, but not trained."""
CHECK_SUMMARY: Final = (
    "Takes the body of a training and prepares its dataset as the training would, without training "
    "and for free. The result is the dataset report; what a training would refuse, this refuses "
    "with the same 422. A training submitted afterwards uses what was prepared here."
)

Endpoint = Callable[..., Awaitable[Response]]


def make_router(
    modes: Iterable[AnyMode],
    service: RequestService,
    authenticate: Authenticator,
    storage: Storage,
) -> APIRouter:
    """Routes of all ``modes``."""
    router = APIRouter()
    modes = tuple(modes)
    for mode in modes:
        for purpose in Purpose:
            _add_submit(router, mode, purpose, service, authenticate)
    for prefix, app in prefixes_of(modes).items():
        _add_queue(router, prefix, app, service, authenticate, storage)
    return router


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
) -> None:
    async def submit(request: Request, owner: Annotated[str, Depends(authenticate)]) -> Response:
        options = SubmitOptions.of(request)
        body = await read_json_bytes(request)
        try:
            given = mode.request_model.model_validate_json(body)
        except ValidationError as error:
            raise InvalidInput.of(error) from None
        submitted, repeated = await service.submit(mode, owner, given, options, purpose)
        answer = _json(submitted, 200, submitted.request_id)
        if repeated:
            answer.headers[REPLAYED] = "true"
        return answer

    is_check = purpose == Purpose.CHECK
    for path in (mode.id, mode.path):
        router.add_api_route(
            f"/{path}/{CHECK}" if is_check else f"/{path}",
            submit,
            methods=["POST"],
            summary=f"{mode.title}: check a dataset" if is_check else mode.title,
            description=CHECK_SUMMARY if is_check else mode.summary,
            operation_id=f"{'check' if is_check else 'submit'}_{mode.path}_at_"
            + path.replace("/", "_"),
            response_model=schemas.Submitted,
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {
                                "$ref": f"#/components/schemas/{mode.request_model.__name__}"
                            }
                        }
                    },
                }
            },
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
        if not ID.fullmatch(request_id):
            raise UnknownRequest
        return Asked(app, request_id, owner)

    async def status(request: Request, asked: Annotated[Asked, Depends(asked)]) -> Response:
        found = await service.status(asked, wants(request, "logs"))
        code = 200 if found.status == "COMPLETED" else 202
        return _json(found, code, found.request_id)

    async def result(asked: Annotated[Asked, Depends(asked)]) -> Response:
        row = await service.get(asked)
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
            raise NotFound("This request has no dataset report (yet).")
        return Response(found, 200, {REQUEST_ID: row.id}, media_type="application/json")

    async def events(
        asked: Annotated[Asked, Depends(asked)],
        after: Annotated[int, Query(ge=0, le=MAX_EVENT_ID)] = 0,
    ) -> Response:
        found = await service.events(asked, after)
        body = await asyncio.to_thread(signed, storage, found.model_dump())
        return JSONResponse(body, 200, {REQUEST_ID: asked.request_id})

    base = f"/{prefix}/requests/{{request_id}}"
    for path, method, endpoint, answer in (
        (f"{base}/status", "GET", status, schemas.RequestStatus),
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


def _json(answer: BaseModel, status: int, request_id: str) -> JSONResponse:
    return JSONResponse(answer.model_dump(), status, {REQUEST_ID: request_id})
