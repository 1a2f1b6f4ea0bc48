"""Removing what is older than the retention: requests, uploads, what was prepared for requests.

Files go first and what names them last: who dies in between leaves something that the next pass
finds again, never a file that nobody knows. Any number of gateways may do it at once; what one has
removed is no work for the other. `docs/retention.md` says what users see of it.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.engine import AsyncDatabase
from app.db.models import Attempt, Event, LogLine, Request, State, Upload, WebhookAttempt
from app.storage import Storage
from app.storage.errors import StorageError, StorageUnavailable

BATCH: Final = 100
"""Rows per look at a table."""
READ_AT_ONCE: Final = 1000
"""Rows in memory, where all have to be seen."""
UNFINISHED_AFTER_S: Final = 24 * 3600.0
"""An upload that is not whole by then never will be: its URL has ended."""
UNCLAIMED_FOR_S: Final = 3600.0
"""How long what no request names stays: a worker that has just stored it is
about to say so, and may write a debug archive first."""

UPLOADS: Final = "uploads"
PREPARED: Final = "prepared"
"""Datasets and sources, fitted (`workers.prepare`, `workers.prepare_generation`)."""
LORAS: Final = "loras"
LINKS: Final = "links"
"""LoRA files, and which of them a URL led to (`workers.loras`)."""
SHARED: Final = (PREPARED, LORAS, LINKS)
"""Prefixes of folders that are named by their content and may serve any number of requests."""
MARKERS: Final = ("manifest.json", "source.json")
"""Of `preprocessing.manifest`, which the service does not import: with it, a folder is whole."""
NOBODY: Final = ""
"""Owner of a file that was uploaded before uploads had rows."""

_UPLOAD = re.compile(rf"{UPLOADS}/[0-9a-f]{{32}}/")
"""An upload's folder, in a key as in a URL of this service."""

log = structlog.get_logger()


@dataclass
class Removed:
    """How many of each a pass removed."""

    requests: int = 0
    uploads: int = 0
    prepared: int = 0

    def __bool__(self) -> bool:
        return any(vars(self).values())


@dataclass
class Retention:
    """One gateway's part in it. Nothing expires where ``retention_s`` is 0."""

    database: AsyncDatabase
    storage: Storage
    retention_s: float
    clock: Callable[[], float] = time.monotonic
    _unclaimed_since: dict[str, float] = field(default_factory=dict)

    async def sweep(self) -> Removed:
        """One pass over all that is due.

        A file that can't be removed holds up nothing else. Raises `StorageUnavailable`: the rest
        has to wait for the store as well.
        """
        removed = Removed()
        if self.retention_s > 0:
            removed.requests = await self._each(expired_requests, self._expire)
        removed.uploads = await self._sweep_uploads()
        if self.retention_s > 0:
            removed.prepared = await self._sweep_prepared()
        return removed

    async def _each(self, find: Any, remove: Any) -> int:
        """``remove`` everything that ``find`` finds, batch by batch; returns how many it did."""
        done, failed = 0, set[str]()
        while True:
            batch = await self.database.read(find, self.retention_s, failed)
            if not batch:
                return done
            for name, *rest in batch:
                try:
                    done += await remove(name, *rest)
                except StorageUnavailable:
                    raise
                except StorageError as error:
                    failed.add(name)
                    log.warning("retention.failed", what=name, error=repr(error))

    async def _expire(self, request_id: str, storage_prefix: str) -> bool:
        await asyncio.to_thread(self.storage.delete_tree, storage_prefix)
        return await self.database.write(expire, request_id, self.retention_s)

    async def _sweep_uploads(self) -> int:
        # Rows first: whose row goes after this was looked up has no file when files are.
        known = await self.database.read(known_uploads)
        stored = await asyncio.to_thread(self.storage.list_keys, UPLOADS)
        if strangers := sorted(set(stored) - known):
            await self.database.write(adopt, strangers)
        return await self._each(expired_uploads, self._remove_upload)

    async def _remove_upload(self, key: str) -> bool:
        await asyncio.to_thread(self.storage.delete, key)
        return await self.database.write(forget_upload, key)

    async def _sweep_prepared(self) -> int:
        """Folders that no unexpired request was prepared to, for a while."""
        stored = set[str]()
        for prefix in SHARED:
            keys = await asyncio.to_thread(self.storage.list_keys, prefix)
            stored |= {"/".join(key.split("/")[:2]) for key in keys}
        unclaimed = stored - await self.database.read(claimed_folders)
        now = self.clock()
        since = {key: self._unclaimed_since.get(key, now) for key in unclaimed}
        self._unclaimed_since = since
        due = [key for key in sorted(since) if now - since[key] >= UNCLAIMED_FOR_S]
        if not due:
            return 0
        # Once more, and closer: somebody may have asked for the same meanwhile.
        claimed = await self.database.read(claimed_folders)
        due = [key for key in due if key not in claimed]
        for key in due:
            # Without it there is nothing: nobody takes the files that go next for the whole.
            for marker in MARKERS:
                await asyncio.to_thread(self.storage.delete, f"{key}/{marker}")
            await asyncio.to_thread(self.storage.delete_tree, key)
            del since[key]
        return len(due)


def expired_requests(
    session: Session, retention_s: float, but: Iterable[str] = ()
) -> Sequence[tuple[str, str]]:
    """(id, storage prefix) of the first requests to expire."""
    found = session.execute(
        select(Request.id, Request.storage_prefix)
        .where(_is_due(retention_s), Request.id.not_in(list(but)))
        .order_by(Request.finished_at)
        .limit(BATCH)
    )
    return [(request_id, prefix) for request_id, prefix in found]


def expire(session: Session, request_id: str, retention_s: float) -> bool:
    """Leave only the tombstone of a request whose files are gone. False: it is one already."""
    locked = session.scalar(
        select(Request.id).where(Request.id == request_id, _is_due(retention_s)).with_for_update()
    )
    if locked is None:
        return False
    for table in (LogLine, Event, Attempt, WebhookAttempt):
        session.execute(delete(table).where(table.request_id == request_id))
    session.execute(
        update(Request)
        .where(Request.id == request_id)
        .values(
            input={},
            tags={},
            webhook_url=None,
            prepared=None,
            progress=None,
            result_body=None,
            error=None,
            expired_at=db_now(),
        )
        .execution_options(synchronize_session=False)
    )
    return True


def expired_uploads(
    session: Session, retention_s: float, but: Iterable[str] = ()
) -> Sequence[tuple[str]]:
    """Keys of the first uploads to remove: old ones that no waiting or running request uses, and
    those that were begun and never came."""
    unfinished = and_(Upload.stored_at.is_(None), Upload.created_at < db_now() - UNFINISHED_AFTER_S)
    old = Upload.stored_at < db_now() - retention_s
    passed_over = set(but)
    used = _uploads_in_use(session) if retention_s > 0 else set()
    found: list[tuple[str]] = []
    after = ""
    while len(found) < BATCH:
        keys = session.scalars(
            select(Upload.key)
            .where(or_(unfinished, old) if retention_s > 0 else unfinished, Upload.key > after)
            .order_by(Upload.key)
            .limit(BATCH)
        ).all()
        if not keys:
            break
        after = keys[-1]
        found += [
            (key,) for key in keys if key not in passed_over and not _uploads_in([key]) & used
        ]
    return found


def forget_upload(session: Session, key: str) -> bool:
    """The file is gone. False: its row was, too."""
    row = session.scalars(delete(Upload).where(Upload.key == key).returning(Upload.key)).all()
    return bool(row)


def known_uploads(session: Session) -> set[str]:
    """Keys of uploads that have a row."""
    return set(session.scalars(select(Upload.key).where(Upload.key.startswith(f"{UPLOADS}/"))))


def adopt(session: Session, keys: Iterable[str]) -> None:
    """Give rows to files that have none: their time begins now."""
    for key in keys:
        # Its own upload, or another gateway, may have been a moment earlier.
        with contextlib.suppress(IntegrityError), session.begin_nested():
            session.execute(insert(Upload).values(key=key, owner=NOBODY, stored_at=db_now()))


def claimed_folders(session: Session) -> set[str]:
    """Folders below `SHARED` that unexpired requests were prepared to: ``key`` of a dataset or a
    source, ``key`` and ``link`` of each of its ``loras``."""
    found = session.scalars(
        select(Request.prepared)
        .where(Request.prepared.is_not(None), Request.expired_at.is_(None))
        .execution_options(yield_per=READ_AT_ONCE)
    )
    claims = (claim for one in found if one for claim in (one, *one.get("loras", ())))
    return {claim[name] for claim in claims for name in ("key", "link") if claim.get(name)}


def _is_due(retention_s: float) -> ColumnElement[bool]:
    return and_(
        Request.finished_at < db_now() - retention_s,
        Request.finished_at.is_not(None),
        Request.expired_at.is_(None),
        # Its receiver is yet to be told, and may ask for the files then.
        Request.webhook_next_at.is_(None),
    )


def _uploads_in_use(session: Session) -> set[str]:
    inputs = session.scalars(
        select(Request.input)
        .where(Request.state != State.COMPLETED)
        .execution_options(yield_per=READ_AT_ONCE)
    )
    return _uploads_in(text for input in inputs for text in _texts(input))


def _uploads_in(texts: Iterable[str]) -> set[str]:
    return {folder for text in texts for folder in _UPLOAD.findall(text)}


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
