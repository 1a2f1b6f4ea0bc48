"""Submits that were sent before: found again instead of done twice.

Two ways. A client that names its submit (``Idempotency-Key``) gets the first request of that name
for 24 hours, whatever became of it. One that can't (fal's clients repeat a submit whose answer was
lost, `fal-protocol.md` 1.5) gets an equal request of the last ``dedupe_window_s`` seconds, where
the operator has set that, unless it ended badly: who submits after a failure means it.
"""

import hashlib
from typing import Any, Final

from pydantic_core import to_json
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session
from starlette.requests import Request as HttpRequest

from app.clock import db_now
from app.db.models import SHORT, Purpose, Request, State
from app.errors import InvalidInput

KEY_HEADER: Final = "idempotency-key"
REPLAYED: Final = "idempotent-replayed"
"""Of the reply to a repeat, as Stripe names it: ``true``."""
KEY_LIFETIME_S: Final = 24 * 3600.0
MAX_KEY_CHARACTERS: Final = SHORT


def key_of(request: HttpRequest) -> str | None:
    """The submit's name, if it has one. Raises `InvalidInput`."""
    given = request.headers.getlist(KEY_HEADER)
    if not given:
        return None
    key = given[0].strip()
    if len(given) > 1 or not 0 < len(key) <= MAX_KEY_CHARACTERS or not key.isprintable():
        raise InvalidInput.at(
            ("header", KEY_HEADER),
            f"Give one key of 1 to {MAX_KEY_CHARACTERS} printable characters, such as a UUID",
            "value_error",
        )
    return key


def sha256_of(endpoint: str, purpose: Purpose, input: dict[str, Any]) -> str:
    """What a submit asks for, hexadecimal. How (priority, webhook, tags) does not count.

    ``input`` is as its model writes it: every field, in the model's order.

    >>> sha256_of("a/b/c", Purpose.TRAIN, {"x": 1, "y": 2})[:8]
    'c5ef9353'
    """
    return hashlib.sha256(to_json([endpoint, purpose, input])).hexdigest()


def find(
    session: Session,
    owner: str,
    *,
    key: str | None,
    body_sha256: str,
    window_s: float,
) -> Request | None:
    """The request that this submit repeats; None: it is new, and to be added in this transaction.

    Until the transaction ends, no other gateway gets past here with the same key or body.

    Raises:
        InvalidInput: the key was used for something else.
    """
    if key is not None:
        _lock(session, owner, "key", key)
        found = session.scalar(
            select(Request)
            .where(
                Request.owner == owner,
                Request.idempotency_key == key,
                Request.created_at > db_now() - KEY_LIFETIME_S,
            )
            .order_by(Request.number)
            .limit(1)
        )
        if found is not None and found.body_sha256 != body_sha256:
            # Not 409: fal's Python client repeats that ten times.
            raise InvalidInput.at(
                ("header", KEY_HEADER),
                f"This key was used within {KEY_LIFETIME_S / 3600:.0f} hours for request "
                f"{found.id}, which has another endpoint or body. Use a new key for a new request",
                "idempotency_key_reused",
            )
        return found
    if window_s <= 0:
        return None
    _lock(session, owner, "body", body_sha256)
    return session.scalar(
        select(Request)
        .where(
            Request.owner == owner,
            Request.body_sha256 == body_sha256,
            Request.created_at > db_now() - window_s,
            Request.cancel_requested_at.is_(None),
            Request.expired_at.is_(None),
            or_(Request.state != State.COMPLETED, Request.result_status == 200),
        )
        .order_by(Request.number.desc())
        .limit(1)
    )


def _lock(session: Session, *what: str) -> None:
    """Alone with ``what`` until the transaction ends. A SQLite writer is alone anyway."""
    if session.get_bind().dialect.name == "sqlite":
        return
    digest = hashlib.sha256("\0".join(what).encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    session.execute(select(func.pg_advisory_xact_lock(number)))
