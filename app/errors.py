"""What the API answers when it can't do what was asked.

ServiceError
├── RequestError            the platform's: flat {"detail", "error_type"}
│   ├── BadRequest          400
│   ├── NotAuthenticated    401
│   ├── Forbidden           403
│   │   └── QueueLimitReached
│   ├── NotFound            404
│   ├── UnknownRequest      404  {"status": "NOT_FOUND"}
│   │   └── ExpiredRequest       the same with a detail, for its owner
│   ├── AlreadyCompleted    400  {"status": "ALREADY_COMPLETED"}
│   ├── NotTraining         409
│   ├── BodyTooLarge        413
│   │   └── StorageLimitReached
│   ├── UnsupportedBody     415
│   ├── QueueFull           429
│   ├── RunTimeout          504
│   └── Unavailable         503  database or store can't be reached
└── InvalidInput            422  fal's list of details, one per wrong field

Bodies and headers follow `spec/fal-protocol.md` 2.6. No body carries a path of this machine, a
traceback, or more of the input than `MAX_ECHO`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Any, ClassVar, Final

from pydantic import ValidationError
from starlette.responses import JSONResponse

ERROR_PAGE: Final = "https://docs.fal.ai/errors/#"
"""fal's page; clients show the link, and some read the type from it."""

REQUEST_ID: Final = "x-fal-request-id"
BILLABLE_UNITS: Final = "x-fal-billable-units"
ERROR_TYPE: Final = "x-fal-error-type"
RETRYABLE: Final = "x-fal-retryable"
TIMEOUT_TYPE: Final = "x-fal-request-timeout-type"

MAX_ECHO: Final = 200
"""Characters of a wrong value that a 422 repeats; a longer one is left out."""
MAX_DETAILS: Final = 20
"""Errors per 422: its body stays under 16 kB whatever was sent."""
MAX_LOC_CHARACTERS: Final = 100


class ServiceError(Exception):
    """Has an answer. Raise it anywhere below an endpoint."""

    def response(self) -> JSONResponse:
        raise NotImplementedError


class RequestError(ServiceError):
    """A flat error of the platform, with its type in a header as well."""

    status: ClassVar[int] = 400
    error_type: ClassVar[str] = "bad_request"

    def __init__(self, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        return {"detail": self.detail, "error_type": self.error_type}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, {ERROR_TYPE: self.error_type, **self.headers})


class BadRequest(RequestError):
    """The request can't be understood."""


class NotAuthenticated(RequestError):
    """No key, or one that nobody has."""

    status = 401
    error_type = "unauthorized"


class Forbidden(RequestError):
    """The service does not answer here."""

    status = 403
    error_type = "forbidden"


class QueueLimitReached(Forbidden):
    """As many requests of this key wait as may. Not 429: fal's Python client would repeat that for
    50 seconds (`spec/fal-protocol.md` 1.5), and places become free with trainings, in hours."""

    error_type = "queue_limit_reached"


class NotFound(RequestError):
    """Nothing is here."""

    status = 404
    error_type = "not_found"


class UnknownRequest(RequestError):
    """No such request, or another owner's: the answers are equal."""

    status = 404
    error_type = "not_found"

    def __init__(self) -> None:
        super().__init__("Request not found.")

    def body(self) -> dict[str, Any]:
        return {"status": "NOT_FOUND"}


class ExpiredRequest(UnknownRequest):
    """It was there; the retention has removed it. For its owner's eyes only."""

    def __init__(self, expired_at: float, retention_s: float) -> None:
        super().__init__()
        day = datetime.fromtimestamp(expired_at, UTC).date().isoformat()
        self.detail = f"This request expired on {day}"
        if retention_s > 0:
            days = round(retention_s / 86_400, 3)
            unit = "day" if days == 1 else "days"
            self.detail += f"; results are kept for {days:g} {unit} (REELSMITH_RETENTION_S)"
        self.detail += "."

    def body(self) -> dict[str, Any]:
        return {**super().body(), "detail": self.detail}


class AlreadyCompleted(RequestError):
    """Nothing is left to cancel."""

    def __init__(self) -> None:
        super().__init__("The request has already completed.")

    def body(self) -> dict[str, Any]:
        return {"status": "ALREADY_COMPLETED"}


class NotTraining(RequestError):
    """What was asked for can be had during a training's steps only."""

    status = 409
    error_type = "not_training"


class BodyTooLarge(RequestError):
    """More than the service reads."""

    status = 413
    error_type = "payload_too_large"


class StorageLimitReached(BodyTooLarge):
    """More than is left of what this key may store."""

    error_type = "storage_limit_reached"


class UnsupportedBody(RequestError):
    """Not JSON in UTF-8, or compressed."""

    status = 415
    error_type = "unsupported_media_type"


class QueueFull(RequestError):
    """More requests wait than the caller's ``fal_max_queue_length`` allows."""

    status = 429
    error_type = "queue_full"


class RunTimeout(RequestError):
    """A run waited as long as it may; the request goes on."""

    status = 504
    error_type = "run_timeout"

    def __init__(self, detail: str, headers: Mapping[str, str]) -> None:
        # Both clients repeat a 504 without this header: a second training.
        super().__init__(detail, {TIMEOUT_TYPE: "user", RETRYABLE: "false", **headers})

    def body(self) -> dict[str, Any]:
        # fal's JavaScript client shows ``message``, and "Gateway Timeout" without it.
        return {**super().body(), "message": self.detail}


class Unavailable(RequestError):
    """A part of the service is away; nothing was done, and trying again helps."""

    status = 503
    error_type = "service_unavailable"

    def __init__(self) -> None:
        super().__init__("The service is busy or partly down. Try again.", {"retry-after": "5"})


class InvalidInput(ServiceError):
    """Fields that break their rules, in fal's form."""

    def __init__(self, details: Sequence[dict[str, Any]]) -> None:
        super().__init__("; ".join(str(detail["msg"]) for detail in details))
        self.details = list(details)

    @classmethod
    def of(cls, error: ValidationError) -> "InvalidInput":
        """pydantic's findings, in fal's words where fal has some."""
        return cls.found(
            {**item, "loc": ("body", *item["loc"])} for item in error.errors(include_url=False)
        )

    @classmethod
    def found(cls, errors: Iterable[Mapping[str, Any]]) -> "InvalidInput":
        """pydantic's errors, their ``loc`` already beginning with ``body`` or ``query``."""
        return cls([_detail_of(item) for item in islice(errors, MAX_DETAILS)])

    @classmethod
    def at(cls, loc: Iterable[str | int], message: str, type: str, **ctx: Any) -> "InvalidInput":
        """One error, ``loc`` from ``body`` (or ``header``, ``query``) down."""
        return cls([detail(loc, message, type, ctx)])

    def response(self) -> JSONResponse:
        return JSONResponse(
            {"detail": self.details}, 422, {BILLABLE_UNITS: "0", RETRYABLE: "false"}
        )


def detail(
    loc: Iterable[str | int], message: str, type: str, ctx: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One entry of fal's ``detail`` list."""
    entry: dict[str, Any] = {
        "loc": list(loc),
        "msg": message,
        "type": type,
        "url": ERROR_PAGE + type,
    }
    return {**entry, "ctx": dict(ctx)} if ctx else entry


def model_error(
    type: str, message: str, field: str | None = None, ctx: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body of an error found while working on a request, such as a bad dataset.

    ``field`` is the request field whose change mends it, ``validation.0.video_url`` one inside
    others; None blames the whole input.
    """
    parts = field.split(".") if field else []
    loc = ["body", *(int(part) if part.isdecimal() else part for part in parts)]
    return {"detail": [detail(loc, message, type, ctx)]}


def request_error(error_type: str, message: str) -> dict[str, Any]:
    """The flat body of the platform's own errors."""
    return {"detail": message, "error_type": error_type}


FAL_TYPES: Final = {"too_long": "sequence_too_long", "too_short": "sequence_too_short"}
"""pydantic's names -> fal's, where they differ."""
PUBLIC_CTX: Final = frozenset(
    {"gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "expected", "error"}
)
"""Facts of an error that a client can use; pydantic's others name our classes."""


def _detail_of(item: Mapping[str, Any]) -> dict[str, Any]:
    type = FAL_TYPES.get(item["type"], item["type"])
    # `error` holds the exception where a validator of ours raised it: its text is in `msg`.
    ctx = {
        key: value
        for key, value in item.get("ctx", {}).items()
        if key in PUBLIC_CTX and not isinstance(value, Exception)
    }
    loc = [_bounded_loc(part) for part in item["loc"]]
    entry = detail(loc, item["msg"], type, ctx)
    # A missing field has the whole body as its input, invalid JSON has all the bytes.
    if item["type"] not in ("missing", "json_invalid") and _echoes(item["input"]):
        entry["input"] = item["input"]
    return entry


def _echoes(value: object) -> bool:
    """Whether ``value`` may be repeated: short, and JSON can say it."""
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int):
        return abs(value) < 1 << 63
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return len(value) <= MAX_ECHO and not any("\ud800" <= char <= "\udfff" for char in value)
    return False


def _bounded_loc(part: str | int) -> str | int:
    return part[:MAX_LOC_CHARACTERS] if isinstance(part, str) else part
