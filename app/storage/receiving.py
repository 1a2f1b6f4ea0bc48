"""Bodies of uploads: streamed to a file aside, within the limits, then put into the store."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.db.engine import AsyncDatabase
from app.errors import BadRequest, BodyTooLarge
from app.storage import ledger
from app.storage.base import Storage, StoredObject, random_part

WRITE_BYTES: Final = 1024 * 1024
"""Collected before a thread writes them: one hop per MiB."""

STALL_S: Final = 60.0
"""A client that sends nothing for so long is gone."""

MIN_RATE_BYTES_S: Final = 1024.0
"""On average, once `STALL_S` have passed: slower than any line that an archive is sent over."""

GROWTH_BYTES: Final = 64 * 1024 * 1024
"""Room taken ahead for a body that does not say how long it is."""

STAGING: Final = "staging"
"""Below the data folder: bodies that are not stored yet."""

log = structlog.get_logger()


def sweep_staged(folder: Path, older_than_s: float) -> int:
    """Remove what gateways that died were receiving; returns how many files."""
    before, removed = time.time() - older_than_s, 0
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # its own upload has just ended
            if path.stat().st_mtime < before:
                path.unlink()
                removed += 1
    return removed


class Receiver:
    """Takes bodies in. A body has its room before its first byte is written."""

    def __init__(
        self,
        storage: Storage,
        database: AsyncDatabase,
        folder: Path,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``folder`` takes what has not been stored yet; made when missing."""
        self._storage = storage
        self._database = database
        self._folder = folder
        self._now = now
        folder.mkdir(parents=True, exist_ok=True)

    def new_path(self) -> Path:
        """Of a file aside."""
        return self._folder / random_part()

    async def store_file(
        self, request: Request, key: str, owner: str, content_type: str | None, max_bytes: int
    ) -> StoredObject:
        """Store the body as ``owner``'s file ``key``.

        Raises:
            BodyTooLarge: for ``max_bytes``.
            StorageLimitReached: for what is left of the owner's limit.
            Forbidden: the owner's key is revoked.
            BadRequest: the client stopped sending, or sends too slowly.
        """
        async with self._received(request, key, owner, max_bytes) as body:
            stored = await run_in_threadpool(
                self._storage.put_file, key, body.path, content_type=content_type
            )
            await self._database.write(
                ledger.settle_file, body.ticket, key, owner, stored.size_bytes
            )
        return stored

    async def store_part(
        self, request: Request, key: str, owner: str, max_bytes: int
    ) -> StoredObject:
        """As `store_file`, for a part of one."""
        async with self._received(request, key, owner, max_bytes) as body:
            stored = await run_in_threadpool(self._storage.put_file, key, body.path)
            await self._database.write(ledger.settle, body.ticket, key, owner, stored.size_bytes)
        return stored

    @asynccontextmanager
    async def _received(
        self, request: Request, key: str, owner: str, max_bytes: int
    ) -> AsyncIterator["_Body"]:
        """The body in a file aside, for the length of the block."""
        body = _Body(request, self._database, owner, self.new_path(), max_bytes, self._now)
        await body.admit(key)
        try:
            await body.receive()
            yield body
        except BaseException:
            await body.give_up()
            raise
        finally:
            body.path.unlink(missing_ok=True)


@dataclass
class _Body:
    """One body on its way in."""

    request: Request
    database: AsyncDatabase
    owner: str
    path: Path
    max_bytes: int
    now: Callable[[], float]
    ticket: str = ""
    room: int = 0
    """Bytes that are reserved for it."""

    async def admit(self, key: str) -> None:
        """Begin ``key`` and reserve what the body says it has, before a byte of it is read."""
        declared = self.request.headers.get("content-length", "")
        size = int(declared) if declared.isascii() and declared.isdigit() else 0
        if size > self.max_bytes:
            raise self._too_large()
        self.ticket = ledger.new_ticket()
        self.room = await self.database.write(_admit, self.ticket, key, self.owner, size)

    async def receive(self) -> None:
        """Stream the body to `path`. Raises as soon as it is known to be too large."""
        chunks = aiter(self.request.stream())
        started = self.now()
        buffer = bytearray()
        size = 0
        with self.path.open("xb") as file:
            while (chunk := await _next(chunks)) is not None:
                size += len(chunk)
                if size > self.max_bytes:
                    raise self._too_large()
                _check_rate(size, self.now() - started)
                if size > self.room:
                    ahead = min(size + GROWTH_BYTES, self.max_bytes)
                    self.room = await self.database.write(
                        ledger.reserve, self.ticket, self.owner, size, ahead
                    )
                buffer += chunk
                if len(buffer) >= WRITE_BYTES:
                    await run_in_threadpool(file.write, bytes(buffer))
                    buffer.clear()
            await run_in_threadpool(file.write, bytes(buffer))

    async def give_up(self) -> None:
        """Its room is free again."""
        try:
            await self.database.write(ledger.release, self.ticket)
        except SQLAlchemyError as error:
            # It goes with what crashes leave behind (`ledger`).
            log.warning("upload.not_released", error=repr(error))

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"A file may have at most {self.max_bytes} bytes here.")


def _admit(session: Session, ticket: str, key: str, owner: str, size_bytes: int) -> int:
    room = ledger.reserve(session, ticket, owner, size_bytes)
    ledger.begin(session, key, owner)
    return room


def _check_rate(size_bytes: int, seconds: float) -> None:
    """Raises `BadRequest` for a body that trickles."""
    if seconds > STALL_S and size_bytes < MIN_RATE_BYTES_S * seconds:
        raise BadRequest(f"The upload is slower than {MIN_RATE_BYTES_S:.0f} bytes per second.")


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The next piece of a body; None at its end. Raises `BadRequest` when none comes."""
    try:
        async with asyncio.timeout(STALL_S):
            return await anext(chunks)
    except StopAsyncIteration:
        return None
    except TimeoutError:
        raise BadRequest(f"The upload stood still for {STALL_S:.0f} s.") from None
