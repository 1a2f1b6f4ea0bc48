"""What a submit says beside its body: fal's headers and query parameters (`fal-protocol.md` 2.2).

Values that fal ignores are ignored; ones that would promise something else than asked are refused.
"""

import math
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request

from app.db.models import Priority
from app.errors import InvalidInput
from app.requests import repeats

START_TIMEOUT_HEADERS: Final = ("x-fal-request-start-timeout", "x-fal-request-timeout")
"""The new name wins over the deprecated one."""
MIN_START_TIMEOUT_S: Final = 0.1
MAX_START_TIMEOUT_S: Final = 365 * 24 * 3600.0
"""A year; longer is the same as none."""
MAX_WEBHOOK_CHARACTERS: Final = 2_048
MAX_QUEUE_LENGTH: Final = 1_000_000
MAX_TAGS: Final = 10
MAX_TAG_CHARACTERS: Final = 100
HEADERS: Final = frozenset(
    {
        *START_TIMEOUT_HEADERS,
        "x-fal-queue-priority",
        "x-fal-no-retry",
        "x-fal-tags",
        repeats.KEY_HEADER,
    }
)
"""All that say something here: most submits have none of them."""
YES: Final = ("1", "true", "yes")


@dataclass(frozen=True)
class SubmitOptions:
    priority: Priority = Priority.NORMAL
    start_timeout_s: float | None = None
    no_retry: bool = False
    webhook_url: str | None = None
    max_queue_length: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    idempotency_key: str | None = None

    @classmethod
    def of(cls, request: Request) -> "SubmitOptions":
        """Raises `InvalidInput` naming the header or parameter."""
        headers = request.headers
        if not request.scope["query_string"] and HEADERS.isdisjoint(headers.keys()):
            return cls()
        low = headers.get("x-fal-queue-priority", "").strip().lower() == Priority.LOW
        return cls(
            priority=Priority.LOW if low else Priority.NORMAL,
            start_timeout_s=_start_timeout(request),
            no_retry=headers.get("x-fal-no-retry", "").strip().lower() in YES,
            webhook_url=_webhook(request),
            max_queue_length=_max_queue_length(request),
            tags=_tags(headers.get("x-fal-tags", "")),
            idempotency_key=repeats.key_of(request),
        )


def wants(request: Request, parameter: str) -> bool:
    """A yes of any client: Python sends ``true``, JavaScript ``1``."""
    return request.query_params.get(parameter, "").lower() in YES


def _start_timeout(request: Request) -> float | None:
    for name in START_TIMEOUT_HEADERS:
        text = request.headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) if len(text) <= 32 else math.nan
        except ValueError:
            seconds = math.nan
        if not seconds > MIN_START_TIMEOUT_S:  # NaN is not greater than anything
            raise InvalidInput.at(
                ("header", name),
                f"Seconds, greater than {MIN_START_TIMEOUT_S:g}",
                "greater_than",
                gt=MIN_START_TIMEOUT_S,
            )
        return min(seconds, MAX_START_TIMEOUT_S)
    return None


def _webhook(request: Request) -> str | None:
    given = request.query_params.getlist("fal_webhook")
    if not given:
        return None
    loc = ("query", "fal_webhook")
    url = given[0]
    if len(given) > 1:
        raise InvalidInput.at(loc, "Give one webhook URL", "sequence_too_long", max_length=1)
    if len(url) > MAX_WEBHOOK_CHARACTERS:
        raise InvalidInput.at(
            loc,
            f"URL should have at most {MAX_WEBHOOK_CHARACTERS} characters",
            "url_too_long",
            max_length=MAX_WEBHOOK_CHARACTERS,
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or not url.isprintable() or " " in url:
        raise InvalidInput.at(loc, "An absolute http(s) URL is needed", "url_parsing")
    return url


def _max_queue_length(request: Request) -> int | None:
    text = request.query_params.get("fal_max_queue_length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_QUEUE_LENGTH))):
        raise InvalidInput.at(
            ("query", "fal_max_queue_length"), "A whole number of requests is needed", "int_parsing"
        )
    return int(text)


def _tags(header: str) -> dict[str, str]:
    """``name=value`` pairs, separated by commas; what does not look like one is ignored."""
    tags: dict[str, str] = {}
    for pair in header.split(",")[:MAX_TAGS]:
        name, equals, value = (part.strip() for part in pair.partition("="))
        if equals and name:
            tags[name[:MAX_TAG_CHARACTERS]] = value[:MAX_TAG_CHARACTERS]
    return tags
