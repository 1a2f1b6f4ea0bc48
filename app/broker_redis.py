"""kombu's Redis transport, for a queue into which others may have put something.

An entry that is no message raises in kombu's event loop, and the worker ends for good; one whose
body is no call is held by Celery for ever, and the worker takes nothing more. One such entry stops
all workers, one after the other (`spec/reliability.md` T14, T15). Here only what a gateway sends
is passed on. The rest is thrown away and told, and nothing is lost: a message is only a wake-up.
"""

import base64
import json
from typing import Any

import structlog
from kombu.transport import redis

from app.requests.outbox import TASKS

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
"""What reading an entry raises that is no message. A lost connection is none of them."""

log = structlog.get_logger()


def is_wake_up(message: Any) -> bool:
    """Whether it is a call of one of our tasks, without arguments, as `app.broker.Waker` makes it.

    >>> is_wake_up({"headers": {"task": "os.system"}})
    False
    """
    try:
        arguments, named, _ = json.loads(base64.b64decode(message["body"]))
        return (
            message["content-type"] == "application/json"
            and message["headers"]["task"] in TASKS.values()
            and isinstance(message["properties"]["delivery_tag"], str)
            and (arguments, named) == ([], {})
        )
    except MALFORMED:
        return False


class Channel(redis.Channel):  # type: ignore[misc]
    """Survives what is no JSON."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except MALFORMED as error:
            log.error("broker.not_a_message", error=type(error).__name__)
            return True


class Transport(redis.Transport):  # type: ignore[misc]
    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        if is_wake_up(message):
            super()._deliver(message, queue)
        else:
            log.error("broker.not_a_wake_up", queue=queue)
