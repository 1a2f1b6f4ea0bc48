"""The service's OpenAPI document: FastAPI's, with what its routes read and answer by themselves.

The busy routes parse bodies and headers without FastAPI's parameters, and errors come from
handlers; both are added here, by rules over methods and paths, so that a new route has them too.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from app.auth import Authenticator
from app.hosts import RUN_PREFIX
from app.modes.base import AnyMode
from app.openapi.replies import HEADERS, RESPONSES, SCHEMAS, ref, replies_of
from app.requests.endpoints import CHECK, DirectRoute
from app.storage.endpoints import FileToUpload, Parts

Document = dict[str, Any]

METHODS: Final = ("get", "head", "post", "put", "patch", "delete")
SECURITY: Final = {
    "apiKeyAuth": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`Key <your key>` or `Bearer <your key>`; none in single-user mode.",
    }
}


def _parameter(name: str, place: str, description: str, **schema: Any) -> Document:
    return {
        "name": name,
        "in": place,
        "required": False,
        "description": description,
        "schema": schema,
    }


LOGS: Final = _parameter(
    "logs", "query", "Whether to include log lines.", enum=["0", "1", "false", "true"]
)
SUBMIT_PARAMETERS: Final = (
    _parameter(
        "fal_webhook",
        "query",
        "An absolute http(s) URL that is told of the end.",
        type="string",
        format="uri",
        pattern="^https?://",
        maxLength=2048,
    ),
    _parameter(
        "fal_max_queue_length",
        "query",
        "429 if more requests than this wait already.",
        type="integer",
        minimum=0,
        maximum=1_000_000,
    ),
    _parameter(
        "x-fal-queue-priority",
        "header",
        "`low` runs after all `normal` ones.",
        enum=["normal", "low"],
    ),
    _parameter(
        "x-fal-request-timeout",
        "header",
        "Seconds within which it must have started, or it ends with 504.",
        type="number",
        exclusiveMinimum=0.1,
    ),
    _parameter(
        "idempotency-key",
        "header",
        "Names this submit: sent again within a day, it gets the first one's request.",
        type="string",
        minLength=1,
        maxLength=255,
        pattern="^[!-~]+$",
    ),
    _parameter(
        "x-fal-no-retry",
        "header",
        "`1`: do not try again after a fault of a machine.",
        enum=["0", "1"],
    ),
    _parameter(
        "x-fal-tags", "header", "Up to ten `name=value`, separated by commas.", type="string"
    ),
)
BINARY: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _json_of(model: type[BaseModel]) -> Document:
    return {"application/json": {"schema": ref("schemas", model.__name__)}}


UPLOAD_BODIES: Final[dict[tuple[str, str], tuple[bool, Document]]] = {
    ("post", "/storage/upload/initiate"): (False, _json_of(FileToUpload)),
    ("post", "/storage/upload/initiate-multipart"): (False, _json_of(FileToUpload)),
    ("post", "/files/upload"): (True, BINARY),
    ("put", "/files/{grant}/{key}"): (True, BINARY),
    ("put", "/files/{grant}/{key}/multipart/{upload_id}/{part}"): (True, BINARY),
    ("post", "/files/{grant}/{key}/multipart/{upload_id}/complete"): (True, _json_of(Parts)),
}
"""Operation -> (whether it needs one, content)."""
RULED: Final = frozenset({"maxLength", "minLength", "pattern", "maximum", "minimum"})
"""What a parameter of FastAPI's can break, other than by being absent."""
KEYED_BY_HAND: Final = ("/storage/", "/files/upload")
"""Routes whose permission is no `Authenticator` dependency."""


def document_of(app: FastAPI, modes: Iterable[AnyMode], public_url: str) -> Document:
    """The whole document of ``app``."""
    modes = tuple(modes)
    results = _results(modes)
    document = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        servers=[{"url": public_url}],
        description="Trains LoRAs for LTX-2.3 and generates with them, behind fal's API.",
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas |= _schemas(modes)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components |= {"responses": RESPONSES, "headers": HEADERS, "securitySchemes": SECURITY}
    submits = {route.path_format for route in app.routes if isinstance(route, DirectRoute)}
    keyed = {
        route.path_format
        for route in app.routes
        if isinstance(route, APIRoute) and _needs_key(route)
    }
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                submit = method == "post" and path in submits
                _complete(item[method], method, path, submit=submit, key=submit or path in keyed)
                _describe_success(item[method], method, path, results)
    return document


def _schemas(modes: Iterable[AnyMode]) -> Document:
    models: list[type[BaseModel]] = [mode.request_model for mode in modes]
    models += [FileToUpload, Parts]
    _, inputs = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    _, outputs = models_json_schema(
        [
            (model, "serialization")
            for model in {m: None for mode in modes for m in (mode.output_model, mode.check_model)}
        ],
        ref_template="#/components/schemas/{model}",
    )
    return {**SCHEMAS, **inputs["$defs"], **outputs["$defs"]}


Results = dict[str, dict[str, None]]
"""Path -> names of the models that a result there may have, in their order."""


def _results(modes: Iterable[AnyMode]) -> Results:
    """Of synchronous runs, and of the results of each app."""
    results: Results = {}
    for mode in modes:
        done, checked = mode.output_model.__name__, mode.check_model.__name__
        for path in (mode.id, mode.path):
            results[f"{RUN_PREFIX}/{path}"] = {done: None}
            results[f"{RUN_PREFIX}/{path}/{CHECK}"] = {checked: None}
        of_app = results.setdefault(f"/{mode.app}/requests/{{request_id}}", {})
        of_app.update({done: None, checked: None})
    return results


def _needs_key(route: APIRoute) -> bool:
    def found(dependant: Any) -> bool:
        return isinstance(dependant.call, Authenticator) or any(
            found(inner) for inner in dependant.dependencies
        )

    return route.path.startswith(KEYED_BY_HAND) or found(route.dependant)


def _complete(operation: Document, method: str, path: str, *, submit: bool, key: bool) -> None:
    if submit:
        operation["parameters"] = [*SUBMIT_PARAMETERS]
    if (found := UPLOAD_BODIES.get((method, path))) is not None:
        operation["requestBody"] = {"required": found[0], "content": found[1]}
    parameters = [
        parameter
        for parameter in operation.get("parameters", [])
        # OpenAPI has another place for it.
        if parameter["name"].lower() != "content-type"
    ]
    checked = any(p["in"] == "query" or RULED & p["schema"].keys() for p in parameters)
    if path.endswith(("/status", "/status/stream")):
        parameters.append(LOGS)
    named = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
    # Parts of the path that the function has no use for.
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
        if name not in named
    ]
    operation.pop("parameters", None)
    if parameters:
        operation["parameters"] = parameters
    if key:
        operation["security"] = [{"apiKeyAuth": []}]
    content = operation.get("requestBody", {}).get("content", {})
    operation["responses"].pop("422", None)
    for status, name in replies_of(
        method.upper(),
        path,
        key=key,
        body=method in ("post", "put"),
        json_body="application/json" in content,
        checked=checked,
        submit=submit,
    ):
        operation["responses"][str(status)] = ref("responses", name)


def _event_of(schema: Document) -> Document:
    """A server-sent event with JSON as its data."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _json_reply(description: str, schema: Document) -> Document:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _describe_success(operation: Document, method: str, path: str, results: Results) -> None:
    responses = operation["responses"]
    if path in results:
        options = [ref("schemas", name) for name in results[path]]
        schema = options[0] if len(options) == 1 else {"anyOf": options}
        responses["200"] = _json_reply("The result.", schema)
    elif path.endswith("/status"):
        responses["202"] = {**responses["200"], "description": "It waits, or is worked on."}
        responses["200"] = {**responses["200"], "description": "It is COMPLETED."}
    elif path.endswith(("/status/stream", "/live")):
        (content,) = responses["200"]["content"].values()
        what = "a status as JSON, with new log lines only"
        if path.endswith("/live"):
            what = "a change as JSON; its id says how far it is, for `Last-Event-ID`"
        responses["200"] = {
            "description": f"Events: each `data` line is {what}.",
            "content": {"text/event-stream": {"schema": _event_of(content["schema"])}},
        }
    elif path.endswith("/cancel"):
        responses["202"] = responses.pop("200")
    elif path == "/files/{grant}/{key}" and method in ("get", "head"):
        content = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
        responses["200"] = {"description": "The file.", "content": content}
        responses["206"] = {"description": "The part that `Range` asks for.", "content": content}
        responses["304"] = {"description": "The client has it already (`If-None-Match`)."}
    for success in ("200", "202", "206"):
        if success in responses:
            responses[success].setdefault("headers", {})["x-fal-request-id"] = ref(
                "headers", "RequestId"
            )
