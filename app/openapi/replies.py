"""Which replies each operation can give, beside its success, and what their bodies are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

SCHEMAS: Final[dict[str, Any]] = {
    "RequestError": {
        "title": "RequestError",
        "description": "An error of the service; its type also in the header X-Fal-Error-Type.",
        "type": "object",
        "properties": {
            "detail": {"type": "string"},
            "error_type": {"type": "string"},
            "message": {"type": "string"},
        },
        "required": ["detail", "error_type"],
    },
    "InputError": {
        "title": "InputError",
        "description": "What is wrong with an input, field by field.",
        "type": "object",
        "properties": {
            "detail": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "properties": {
                        "loc": {
                            "type": "array",
                            "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
                        },
                        "msg": {"type": "string"},
                        "type": {"type": "string"},
                        "url": {"type": "string", "format": "uri"},
                        "ctx": {"type": "object", "additionalProperties": True},
                        "input": {},
                    },
                    "required": ["loc", "msg", "type"],
                },
            }
        },
        "required": ["detail"],
    },
    "UnknownRequest": {
        "title": "UnknownRequest",
        "type": "object",
        "properties": {"status": {"const": "NOT_FOUND"}},
        "required": ["status"],
    },
    "AlreadyCompleted": {
        "title": "AlreadyCompleted",
        "type": "object",
        "properties": {"status": {"const": "ALREADY_COMPLETED"}},
        "required": ["status"],
    },
}


def ref(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


HEADERS: Final = {
    "RequestId": {
        "description": "The request it is about, or else an id of this reply.",
        "schema": {"type": "string"},
    }
}


def reply(description: str, *schemas: str) -> dict[str, Any]:
    """A reply with a JSON body of one of ``schemas``."""
    options = [ref("schemas", name) for name in schemas]
    return {
        "description": description,
        "headers": {"x-fal-request-id": ref("headers", "RequestId")},
        "content": {
            "application/json": {"schema": options[0] if len(options) == 1 else {"anyOf": options}}
        },
    }


RESPONSES: Final[dict[str, dict[str, Any]]] = {
    "BadRequest": reply("It can't be understood.", "RequestError"),
    "NotCompleted": reply("The request is still in progress.", "RequestError"),
    "AlreadyCompleted": reply("Nothing is left to cancel.", "AlreadyCompleted"),
    "NotTraining": reply("It is not among the steps of a training.", "RequestError"),
    "NotAuthenticated": reply("No key, or one that nobody has.", "RequestError"),
    "Forbidden": reply(
        "This web page, host name or file URL has no permission here.", "RequestError"
    ),
    "NotFound": reply("Nothing is here.", "RequestError"),
    "UnknownRequest": reply("No such request of yours.", "UnknownRequest", "RequestError"),
    "BodyTooLarge": reply("The body is larger than the service reads.", "RequestError"),
    "UriTooLong": reply("The URL is too long.", "RequestError"),
    "UnsupportedBody": reply("The body is not JSON in UTF-8, uncompressed.", "RequestError"),
    "RangeNotSatisfiable": reply("The range begins behind the end of the file.", "RequestError"),
    "InputError": reply("Fields, headers or parameters that break their rules.", "InputError"),
    "FailedInput": reply("It ended with an error in its input.", "InputError", "RequestError"),
    "QueueFull": reply("More wait than `fal_max_queue_length` or the key allows.", "RequestError"),
    "HeadersTooLarge": reply("The headers are too large.", "RequestError"),
    "Cancelled": reply("The request was cancelled.", "RequestError"),
    "InternalError": reply("A fault of the service, or of a worker.", "RequestError", "InputError"),
    "Unavailable": reply("Database or store can't be reached; try again.", "RequestError"),
    "TimedOut": reply(
        "Not started before its deadline, or not done while a run may wait.",
        "RequestError",
        "InputError",
    ),
}
"""components/responses."""

Replies = dict[int, str]
"""Status -> name in `RESPONSES`."""


@dataclass(frozen=True)
class Rule:
    """Replies of the operations whose ``METHOD /path`` matches."""

    pattern: str
    replies: Replies

    def matches(self, operation: str) -> bool:
        return re.fullmatch(self.pattern, operation) is not None


ALL: Final[Replies] = {
    403: "Forbidden",
    414: "UriTooLong",
    431: "HeadersTooLarge",
    500: "InternalError",
    503: "Unavailable",
}
WITH_KEY: Final[Replies] = {401: "NotAuthenticated"}
WITH_BODY: Final[Replies] = {400: "BadRequest", 413: "BodyTooLarge"}
WITH_JSON: Final[Replies] = {415: "UnsupportedBody", 422: "InputError"}
WITH_PARAMETERS: Final[Replies] = {422: "InputError"}

RESULT_PATH: Final = r"/.+/requests/\{request_id\}"

RULES: Final = (
    Rule(r".* (/.*)?/requests/\{request_id\}.*", {404: "UnknownRequest"}),
    Rule(r"GET /requests", {404: "UnknownRequest"}),
    Rule(r"POST /webhooks/deliveries/.*", {400: "BadRequest", 404: "UnknownRequest"}),
    # Its parameters are the fields of the mode, which it reads itself.
    Rule(r"GET /.+/estimate", {422: "InputError"}),
    Rule(
        f"GET {RESULT_PATH}",
        {400: "NotCompleted", 422: "FailedInput", 499: "Cancelled", 504: "TimedOut"},
    ),
    Rule(r"PUT /.*/requests/\{request_id\}/cancel", {400: "AlreadyCompleted"}),
    Rule(r"PUT /requests/\{request_id\}/(save|sample)", {409: "NotTraining"}),
    Rule(r"DELETE /keys/\{key_id\}", {404: "NotFound"}),
    Rule(r"POST /run/.*", {422: "FailedInput", 499: "Cancelled", 504: "TimedOut"}),
    Rule(r".* /files/\{grant\}/.*", {404: "NotFound"}),
    Rule(r"(GET|HEAD) /files/.*", {416: "RangeNotSatisfiable"}),
    Rule(r"GET /(models|api/openapi)/.*", {404: "NotFound"}),
)


def replies_of(
    method: str, path: str, *, key: bool, body: bool, json_body: bool, checked: bool, submit: bool
) -> Iterator[tuple[int, str]]:
    """(status, name in `RESPONSES`) of one operation, later ones winning."""
    yield from ALL.items()
    for holds, replies in (
        (key, WITH_KEY),
        (body, WITH_BODY),
        (json_body, WITH_JSON),
        (checked, WITH_PARAMETERS),
        (submit, {429: "QueueFull"}),
    ):
        if holds:
            yield from replies.items()
    for rule in RULES:
        if rule.matches(f"{method} {path}"):
            yield from rule.replies.items()
