"""The OpenAPI document of one endpoint, in the shape of fal's own.

fal serves one per endpoint at ``/api/openapi/queue/openapi.json?endpoint_id=...``, and code
generators, workflow editors and language models read it. It says 3.0.4 and, like fal's, uses
``examples`` in schemas, which that version does not know.
"""

import re
from typing import Any, Final

from app.modes.base import AnyMode
from app.openapi.replies import SCHEMAS

Document = dict[str, Any]

STATUS: Final[Document] = {
    "type": "object",
    "properties": {
        "status": {"type": "string", "enum": ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]},
        "request_id": {"type": "string", "description": "The request id."},
        "response_url": {"type": "string", "description": "The response url."},
        "status_url": {"type": "string", "description": "The status url."},
        "cancel_url": {"type": "string", "description": "The cancel url."},
        "queue_position": {"type": "integer", "description": "How many come before; while queued."},
        "logs": {
            "type": "array",
            "nullable": True,
            "description": "Log lines, where asked for.",
            "items": {"type": "object", "additionalProperties": True},
        },
        "metrics": {
            "type": "object",
            "description": "`inference_time` in seconds, once COMPLETED.",
            "additionalProperties": True,
        },
        "error": {"type": "string", "description": "Why it failed."},
        "error_type": {"type": "string", "description": "The kind of failure."},
    },
    "required": ["status", "request_id"],
}
REQUEST_ID: Final[Document] = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "description": "Request ID"},
}
LOGS: Final[Document] = {
    "name": "logs",
    "in": "query",
    "required": False,
    "schema": {
        "type": "number",
        "description": "Whether to include logs (`1`) in the response or not (`0`).",
    },
}


CANCELLED: Final[Document] = {
    "description": "The request ends soon.",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"status": {"type": "string", "enum": ["CANCELLATION_REQUESTED"]}},
            }
        }
    },
}


def document_of_endpoint(mode: AnyMode, public_url: str) -> Document:
    """What fal serves for one of its endpoints, of one of ours."""
    name = schema_name(mode.id)
    request = f"/{mode.id}/requests/{{request_id}}"
    status = _reply("The request status.", "QueueStatus")
    schemas = _schemas(mode.request_model.model_json_schema(), f"{name}Input")
    schemas |= _schemas(mode.output_model.model_json_schema(mode="serialization"), f"{name}Output")
    return {
        "openapi": "3.0.4",
        "info": {
            "title": f"Queue OpenAPI for {mode.id}",
            "version": "1.0.0",
            "description": mode.summary,
            "x-fal-metadata": {
                "endpointId": mode.id,
                "category": mode.category,
                "documentationUrl": f"{public_url}/models/{mode.id}/llms.txt",
            },
        },
        "components": {
            "securitySchemes": {
                "apiKeyAuth": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "Key <your key>",
                }
            },
            "schemas": {
                "QueueStatus": STATUS,
                "InputError": _in_3_0(SCHEMAS["InputError"]),
                **schemas,
            },
        },
        "paths": {
            f"{request}/status": {
                "get": {"parameters": [REQUEST_ID, LOGS], "responses": {"200": status}}
            },
            f"{request}/cancel": {
                "put": {"parameters": [REQUEST_ID], "responses": {"202": CANCELLED}}
            },
            f"/{mode.id}": {
                "post": {
                    "requestBody": {"required": True, "content": _content(f"{name}Input")},
                    "responses": {
                        "200": status,
                        "422": _reply("The input breaks a rule.", "InputError"),
                    },
                }
            },
            request: {
                "get": {
                    "parameters": [REQUEST_ID],
                    "responses": {
                        "200": _reply("Result of the request.", f"{name}Output"),
                        "422": _reply("The input could not be used.", "InputError"),
                    },
                }
            },
        },
        "servers": [{"url": public_url}],
        "security": [{"apiKeyAuth": []}],
    }


def schema_name(endpoint_id: str) -> str:
    """As fal names it.

    >>> schema_name("fal-ai/ltx23-trainer-v2/extend-suffix")
    'Ltx23TrainerV2ExtendSuffix'
    """
    words = re.split(r"[^A-Za-z0-9]+", endpoint_id.partition("/")[2])
    return "".join(word[:1].upper() + word[1:] for word in words)


def _content(schema: str) -> Document:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _reply(description: str, schema: str) -> Document:
    return {"description": description, "content": _content(schema)}


def _schemas(schema: Document, name: str) -> Document:
    """``schema`` as ``name``, and those it refers to, as components of a 3.0 document."""
    parts = {**schema.get("$defs", {}), name: {k: v for k, v in schema.items() if k != "$defs"}}
    return {
        key: {"x-fal-order-properties": list(part.get("properties", {})), **_in_3_0(part)}
        for key, part in parts.items()
    }


def _in_3_0(schema: Any) -> Any:
    """A JSON Schema of today in OpenAPI 3.0's dialect: no null type, no ``const``."""
    if isinstance(schema, list):
        return [_in_3_0(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _in_3_0(value) for key, value in schema.items()}
    if "$ref" in found:
        reference = found["$ref"].replace("#/$defs/", "#/components/schemas/")
        # Beside a reference 3.0 sees nothing else.
        others = {key: value for key, value in found.items() if key != "$ref"}
        return {**others, "allOf": [{"$ref": reference}]} if others else {"$ref": reference}
    if "const" in found:
        found["enum"] = [found.pop("const")]
    options = found.get("anyOf", [])
    if {"type": "null"} in options:
        rest = [option for option in options if option != {"type": "null"}]
        del found["anyOf"]
        # fal leaves "or null" out; 3.0 has a word for it.
        found["nullable"] = True
        if len(rest) > 1:
            found["anyOf"] = rest
        elif "$ref" in rest[0]:
            found["allOf"] = rest
        else:
            found = {**rest[0], **found}
    for bound in ("minimum", "maximum"):
        exclusive = f"exclusive{bound.capitalize()}"
        if exclusive in found:
            found[bound], found[exclusive] = found[exclusive], True
    return found
