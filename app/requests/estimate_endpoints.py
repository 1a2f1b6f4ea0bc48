"""``/{endpoint}/estimate``: POST with a mode's body, or GET with its fields as parameters.

What names files may be left out: nothing is fetched. In a GET, what is not text is written as JSON:
``?number_of_steps=500&with_audio=true&validation=[{"prompt":"a cat"}]``.
"""

import json
from collections.abc import Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ValidationError

from app.auth import Authenticator
from app.db.engine import AsyncDatabase
from app.errors import InvalidInput
from app.hosts import RUN_PREFIX
from app.modes.base import AnyMode, Generation, Training
from app.modes.common import Input
from app.requests.body import read_json_bytes
from app.requests.estimate import Estimate, estimate
from app.requests.estimate_generation import GenerationEstimate, estimate_generation

ESTIMATES: Final[dict[type[AnyMode], type[BaseModel]]] = {
    Training: Estimate,
    Generation: GenerationEstimate,
}
"""What the answer is."""
SINGLE: Final = ("string", "integer", "number", "boolean")
"""Types that a parameter can have as it is."""
MAX_JSON_CHARACTERS: Final = 16_384
"""Of one parameter; a whole URL may have no more."""


def make_router(
    modes: Iterable[AnyMode], database: AsyncDatabase, authenticate: Authenticator, model: str
) -> APIRouter:
    """Routes of all ``modes``, for work with ``model``."""
    router = APIRouter()
    for mode in modes:
        _add(router, mode, database, authenticate, model)
    return router


def _add(
    router: APIRouter,
    mode: AnyMode,
    database: AsyncDatabase,
    authenticate: Authenticator,
    model: str,
) -> None:
    async def by_body(request: Request, owner: Annotated[str, Depends(authenticate)]) -> BaseModel:
        return await answer(await read_json_bytes(request), "body")

    async def by_query(request: Request, owner: Annotated[str, Depends(authenticate)]) -> BaseModel:
        fields = _fields(mode, dict(request.query_params))
        return await answer(json.dumps(fields).encode(), "query")

    async def answer(body: bytes, where: str) -> BaseModel:
        given = _parse(mode, body, where)
        match mode:
            case Training():
                return await database.read(estimate, mode, given, model)
            case Generation():
                return await database.read(estimate_generation, mode, given, model)
        raise AssertionError(f"{mode.path} has no estimate")

    for path in (mode.id, mode.path):
        # A client's synchronous run of it: there is nothing to wait for.
        router.add_api_route(
            f"{RUN_PREFIX}/{path}/estimate",
            by_body,
            methods=["POST"],
            response_model=ESTIMATES[type(mode)],
            include_in_schema=False,
        )
        for method, endpoint in (("GET", by_query), ("POST", by_body)):
            router.add_api_route(
                f"/{path}/estimate",
                endpoint,
                methods=[method],
                response_model=ESTIMATES[type(mode)],
                summary=f"{mode.title}: price, time and memory",
                description="For the body of a submit; nothing is submitted or fetched.",
                operation_id=f"estimate_{method.lower()}_{mode.path}_at_{path}".replace("/", "_"),
                openapi_extra=_takes(mode) if method == "POST" else _asks(mode),
            )


def _takes(mode: AnyMode) -> dict[str, Any]:
    reference = f"#/components/schemas/{mode.request_model.__name__}"
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": reference}}},
        }
    }


def _asks(mode: AnyMode) -> dict[str, Any]:
    """The same fields as parameters. What is no single value is JSON."""
    schema = mode.request_model.model_json_schema(ref_template="#/components/schemas/{model}")
    parameters = []
    for name, field in schema["properties"].items():
        of_one = {"schema": field}
        of_many = {"content": {"application/json": {"schema": field}}}
        parameters.append(
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": field.get("description", ""),
                **(of_one if field.get("type") in SINGLE else of_many),
            }
        )
    return {"parameters": parameters}


def _parse(mode: AnyMode, body: bytes, where: str) -> Any:
    """A request of the mode's. Raises `InvalidInput`."""
    model: type[Input] = mode.request_model
    try:
        given = json.loads(body)
        if isinstance(given, dict):
            body = json.dumps({**mode.stand_ins, **given}).encode()
    except (ValueError, RecursionError):
        pass  # pydantic says it better
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidInput.found(
            {**item, "loc": (where, *item["loc"])} for item in error.errors(include_url=False)
        ) from None


def _fields(mode: AnyMode, parameters: dict[str, str]) -> dict[str, Any]:
    """Parameters as JSON values. What should be text stays text, also where it looks like more."""
    properties = mode.request_model.model_json_schema()["properties"]
    fields: dict[str, Any] = {}
    for name, text in parameters.items():
        if name not in properties:
            continue
        fields[name] = text
        if properties[name].get("type") != "string" and len(text) <= MAX_JSON_CHARACTERS:
            try:
                fields[name] = json.loads(text)
            except (ValueError, RecursionError):
                continue  # the field's own error then names it
    return fields
