"""Logs as JSON lines on stderr, ours and the libraries' alike; one event is one line.

``structlog.contextvars.bind_contextvars(request_id=...)`` puts the request into every line.

Ours don't pass through the standard library's loggers, which take more than twice as long: a
submit writes two lines.
"""

import json
import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]
ENCODER = json.JSONEncoder(ensure_ascii=True, default=repr)
"""ASCII: no line separator of Unicode can break a line in two."""


def as_json(logger: object, name: str, event: EventDict) -> str:
    """The line; the last processor."""
    return ENCODER.encode(event)


AS_JSON: list[Processor] = [structlog.processors.format_exc_info, as_json]

QUIET = ("alembic", "botocore", "boto3", "httpx", "httpx2", "s3transfer")
"""Libraries whose INFO is noise, or writes down URLs that are permissions."""


class Stderr:
    """Writes lines to what ``sys.stderr`` is at that moment, each in one piece."""

    def msg(self, line: str) -> None:
        sys.stderr.write(line + "\n")

    debug = info = warning = error = critical = msg


def configure(level: str = "INFO") -> None:
    """Set up structlog and the root logger. Safe to call again; loggers in use keep their level."""
    structlog.configure(
        processors=[*SHARED, *AS_JSON],
        logger_factory=_stderr,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*SHARED, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *AS_JSON],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _stderr(*_: Any) -> Stderr:
    return Stderr()
