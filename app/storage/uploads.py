"""What the upload routes do, for both fal clients (`spec/fal-protocol.md` 1.6).

An upload belongs to the key that began it. What comes later needs no key but the URL or id that
was handed out then, signed for that one file (`ledger.owner_of` finds whose it is).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.db.engine import AsyncDatabase
from app.errors import BadRequest, Forbidden
from app.settings import Settings
from app.storage import ledger, multipart
from app.storage.base import Storage, StoredObject, random_part, safe_file_name
from app.storage.receiving import STAGING, Receiver
from app.storage.signing import WRITE, UrlSigner

UPLOAD_URL_LIFETIME_S: Final = 24 * 3600
"""Longer than any upload takes."""

TOKEN_LIFETIME_S: Final = 3600
"""The Python client asks for a new one when it has expired."""

_SCHEME: Final = "Bearer"
_TOKEN: Final = "upload-token"  # noqa: S105 - a purpose, not a secret


class Uploads:
    """Every upload, from its beginning to the stored file."""

    def __init__(
        self, storage: Storage, settings: Settings, signer: UrlSigner, database: AsyncDatabase
    ) -> None:
        self._storage = storage
        self._signer = signer
        self._database = database
        self._url_expiry_s = settings.url_expiry_s
        self._max_bytes = settings.max_archive_bytes
        self._receiver = Receiver(storage, database, settings.data_dir / STAGING)

    def token(self, owner: str) -> dict[str, str]:
        """A token for the CDN routes, as fal's Python client wants one first."""
        expires_at = datetime.now(UTC) + timedelta(seconds=TOKEN_LIFETIME_S)
        return {
            "token": f"{self._signer.sign(TOKEN_LIFETIME_S, _TOKEN, owner)}.{owner}",
            "token_type": _SCHEME,
            "base_url": self._signer.public_url,
            # Not "Z" at the end: Python before 3.11 can't read that.
            "expires_at": expires_at.replace(microsecond=0).isoformat(),
        }

    def token_holder(self, authorization: str) -> str | None:
        """Whose token an Authorization header holds; None where it holds something else."""
        scheme, _, token = authorization.partition(" ")
        signed, _, owner = token.partition(".")
        holds = scheme == "Bearer" and self._signer.verify(signed, _TOKEN, owner)
        return owner if holds else None

    async def initiate(self, owner: str, file_name: str | None) -> dict[str, str]:
        """A URL to PUT the file to, and the one it will have."""
        key = await self._begin(owner, file_name)
        return {
            "upload_url": self._signer.write_url(key, expires_s=UPLOAD_URL_LIFETIME_S),
            "file_url": self._file_url(key),
        }

    async def put(
        self, request: Request, grant: str, key: str, content_type: str | None
    ) -> StoredObject:
        """The bytes of an upload, permitted by the URL alone."""
        if not self._signer.allows(WRITE, grant, key):
            raise Forbidden("This URL has expired, or was not made for this.")
        owner = await self._database.read(ledger.owner_of, key)
        return await self._receiver.store_file(request, key, owner, content_type, self._max_bytes)

    async def upload(
        self, request: Request, owner: str, file_name: str | None, content_type: str | None
    ) -> dict[str, str]:
        """The file itself as the body."""
        key = _new_key(file_name)
        await self._receiver.store_file(request, key, owner, content_type, self._max_bytes)
        return {"access_url": self._file_url(key)}

    async def begin_parts(
        self, owner: str, file_name: str | None, content_type: str | None
    ) -> tuple[str, str]:
        """An upload in parts: (the URL that the file will have, the upload's id)."""
        key = await self._begin(owner, file_name)
        return self._file_url(key), multipart.new_upload_id(self._signer, key, content_type)

    def check_parts(self, key: str, upload_id: str) -> multipart.Upload:
        """The upload in parts that ``upload_id`` permits for ``key``. Raises `Forbidden`."""
        found = multipart.find_upload(self._signer, key, upload_id)
        if found is None:
            raise Forbidden("This upload does not exist or has expired.")
        return found

    async def put_part(self, request: Request, key: str, upload_id: str, part: str) -> StoredObject:
        """One part; ``part`` is its number as the path has it."""
        found = self.check_parts(key, upload_id)
        number = part_number(part)
        owner = await self._database.read(ledger.owner_of, key)
        limit = min(self._max_bytes, multipart.MAX_PART_BYTES)
        return await self._receiver.store_part(request, found.part_key(number), owner, limit)

    async def complete(self, key: str, upload_id: str, etags: Mapping[int, str]) -> dict[str, str]:
        """All parts are there: make them one file."""
        found = self.check_parts(key, upload_id)
        owner = await self._database.read(ledger.owner_of, key)
        stored = await run_in_threadpool(
            multipart.assemble,
            self._storage,
            found,
            etags,
            scratch=self._receiver.new_path(),
            max_bytes=self._max_bytes,
        )
        await self._database.write(
            ledger.settle_parts, found.parts_prefix, key, owner, stored.size_bytes
        )
        return {"access_url": self._file_url(key)}

    async def _begin(self, owner: str, file_name: str | None) -> str:
        key = _new_key(file_name)
        await self._database.write(ledger.begin, key, owner)
        return key

    def _file_url(self, key: str) -> str:
        return self._signer.read_url(key, expires_s=self._url_expiry_s)


def part_number(text: str) -> int:
    """Of a part. Text in the path: Starlette's own number would be a 500 for thousands of digits.

    Raises `BadRequest`.
    """
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else 0
    if not 1 <= number <= multipart.MAX_PARTS:
        raise BadRequest(f"Parts are numbered 1 to {multipart.MAX_PARTS}.")
    return number


def _new_key(file_name: str | None) -> str:
    return f"uploads/{random_part()}/{safe_file_name(file_name)}"
