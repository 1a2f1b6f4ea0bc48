"""Logs as JSON lines on stderr, ours and the libraries' alike; one event is one line.

``structlog.contextvars.bind_contextvars(request_id=...)`` puts the request into every line. No line
holds a secret: those of the settings are known, others are known by their form.

Ours don't pass through the standard library's loggers, which take more than twice as long: a
submit writes two lines.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable
from typing import Any, Final

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
ENCODER = json.JSONEncoder(ensure_ascii=True, default=repr)
"""ASCII: no line separator of Unicode can break a line in two."""


def as_json(logger: object, name: str, event: EventDict) -> str:
    """The line."""
    return ENCODER.encode(event)


AS_JSON: list[Processor] = [structlog.processors.format_exc_info, as_json]

_PROCESSORS: list[Processor] = []
"""One list for all: loggers that were used before keep it, and so learn of new secrets."""

QUIET = ("alembic", "botocore", "boto3", "httpx", "httpx2", "s3transfer")
"""Libraries whose INFO is noise, or writes down URLs that are permissions."""


class Stderr:
    """Writes lines to what ``sys.stderr`` is at that moment, each in one piece."""

    def msg(self, line: str) -> None:
        sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = msg


HIDDEN: Final = "***"
MIN_SECRET_CHARACTERS: Final = 8
"""A shorter one would blot out words of its kind everywhere."""

# Possessive where a part may be long: nothing is tried twice, whoever wrote the line.
_BY_FORM: Final = re.compile(
    r"(?<=://)[^/:@\s\"]*+:[^/@\s\"]*+(?=@)"  # user and password of a URL
    r"|(?<=/files/)\d+-[0-9a-f]{64}"  # the permission in a file's URL (`app/storage/signing.py`)
    r"|(?<=X-Amz-Signature=)[0-9a-f]+"
    r"|(?<=rs-)[0-9a-f]{16}:[\w-]{43}"  # a key of the database (`app/keys/store.py`)
)


_MARKS: Final = ("://", "/files/", "X-Amz-Signature=", "rs-")
"""What stands before each of `_BY_FORM`."""


class Hiding:
    """The last processor: takes secrets out of a rendered line."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # As JSON writes them, the longest first: one may begin like another.
        known = {json.dumps(one)[1:-1] for one in secrets if len(one) >= MIN_SECRET_CHARACTERS}
        self._known = re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))))
        self._any = bool(known)

    def __call__(self, logger: WrappedLogger, name: str, line: Any) -> EventDict | str:
        # A form has its mark; looking for those takes a tenth of the time, and lines are many.
        hidden = _BY_FORM.sub(HIDDEN, line) if any(mark in line for mark in _MARKS) else line
        return self._known.sub(HIDDEN, hidden) if self._any else hidden


def configure(level: str = "INFO", secrets: Iterable[str] = ()) -> None:
    """Set up structlog and the root logger. Safe to call again; loggers in use keep their level.
    ``secrets`` are never written."""
    hiding = Hiding(secrets)
    _PROCESSORS[:] = [*SHARED, *AS_JSON, hiding]
    structlog.configure(
        processors=_PROCESSORS,
        logger_factory=_stderr,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*SHARED, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *AS_JSON,
                hiding,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _stderr(*_: Any) -> Stderr:
    return Stderr()
