"""Whose uploads are, and how much room they take: the table `uploads`.

    uploads/{random}/{name}        a file; not stored yet while `stored_at` is NULL
    parts/{upload}/{number}        a part that came; `stored_at` stays NULL, for it is no file
    receiving/{random}             room for a body that is being received; nothing is stored there

Rows come before the bytes, so whatever lies in the store is counted and has an owner. What a crash
leaves behind has no `stored_at`: such a row that is older than the longest upload, and the file
under its key, may go. Functions take a `Session` and are part of the caller's transaction.
"""

import contextlib
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.models import ApiKey, Upload
from app.errors import Forbidden, StorageLimitReached
from app.keys.sizes import show_size
from app.storage.base import random_part

RECEIVING: Final = "receiving"


def new_ticket() -> str:
    """The key of a row that holds room for one body."""
    return f"{RECEIVING}/{random_part()}"


def begin(session: Session, key: str, owner: str) -> None:
    """``owner`` is going to store ``key``. Done again, it changes nothing."""
    if session.get(Upload, key) is None:
        # Another gateway may be doing the same: a client that sends a part again.
        with contextlib.suppress(IntegrityError), session.begin_nested():
            session.add(Upload(key=key, owner=owner))


def owner_of(session: Session, key: str) -> str:
    """Whose ``key`` is. Raises `Forbidden` for one that was never begun, or is gone."""
    owner = session.scalar(select(Upload.owner).where(Upload.key == key))
    if owner is None:
        raise Forbidden("This upload does not exist or has expired.")
    return owner


def reserve(
    session: Session, ticket: str, owner: str, at_least: int, at_most: int | None = None
) -> int:
    """Make ``ticket`` hold room for ``at_least`` bytes, up to ``at_most`` where there is as much.

    Returns the bytes it holds now. Raises `StorageLimitReached`; `Forbidden` where the owner's
    key, which permitted this upload some time ago, is revoked by now.
    """
    key = session.execute(
        select(ApiKey.max_storage_bytes, ApiKey.revoked_at)
        .where(ApiKey.id == owner)
        # Reservations of one key go one after the other.
        .with_for_update()
    ).one_or_none()
    limit, revoked_at = key or (None, None)
    if revoked_at is not None:
        raise Forbidden("The key that began this upload has been revoked.")
    size = at_most or at_least
    if limit is not None:
        taken = session.scalar(
            select(func.coalesce(func.sum(Upload.size_bytes), 0)).where(
                Upload.owner == owner, Upload.key != ticket
            )
        )
        left = limit - int(taken or 0)
        if at_least > left:
            raise StorageLimitReached(
                f"This upload needs {show_size(at_least)}, and of the {show_size(limit)} that this "
                f"key may store {show_size(max(left, 0))} are left. Wait until old uploads are "
                "removed, or ask for a higher limit."
            )
        size = min(size, left)
    begin(session, ticket, owner)
    session.get_one(Upload, ticket).size_bytes = size
    return size


def release(session: Session, ticket: str) -> None:
    """Give up the room that ``ticket`` holds."""
    session.execute(delete(Upload).where(Upload.key == ticket))


def settle(session: Session, ticket: str, key: str, owner: str, size_bytes: int) -> None:
    """The body came and is stored under ``key``, which holds the room from now on."""
    release(session, ticket)
    _take(session, key, owner, size_bytes)


def settle_file(session: Session, ticket: str, key: str, owner: str, size_bytes: int) -> None:
    """As `settle`, for a body that is the whole file."""
    settle(session, ticket, key, owner, size_bytes)
    session.get_one(Upload, key).stored_at = session.scalar(select(db_now()))


def settle_parts(
    session: Session, parts_prefix: str, key: str, owner: str, size_bytes: int
) -> None:
    """The parts below ``parts_prefix`` have become the file ``key``."""
    session.execute(delete(Upload).where(Upload.key.startswith(f"{parts_prefix}/")))
    _take(session, key, owner, size_bytes)
    session.get_one(Upload, key).stored_at = session.scalar(select(db_now()))


def _take(session: Session, key: str, owner: str, size_bytes: int) -> None:
    begin(session, key, owner)
    row = session.get_one(Upload, key, with_for_update=True, populate_existing=True)
    # Of two bodies that come for one key at the same moment, nobody knows which one stays.
    row.size_bytes = max(row.size_bytes, size_bytes)
