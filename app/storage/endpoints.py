"""Files over HTTP: reading through signed URLs, and the uploads of both fal clients.

All uploads pass through the gateway, also those that end on S3: the size cap holds while the bytes
come, clients need to reach one host only, and fal's Python client sends its ``Authorization``
header with the raw PUT, which S3 refuses beside a presigned URL (`spec/fal-protocol.md` 1.6).
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, ClassVar, Final, TypeVar

from fastapi import APIRouter, Depends, Header
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.errors import BadRequest, BodyTooLarge, Forbidden, InvalidInput, RequestError
from app.requests.body import read_json_bytes
from app.settings import Settings
from app.storage import multipart
from app.storage.base import Storage, StoredObject, random_part, safe_file_name
from app.storage.factory import make_signer
from app.storage.responses import file_response
from app.storage.signing import READ, WRITE, UrlSigner

Owner = Callable[[Request], Awaitable[str]]
"""Who asks; raises when nobody known does (`app.auth.Authenticator`)."""

UPLOAD_URL_LIFETIME_S: Final = 24 * 3600
"""Longer than any upload takes."""

TOKEN_LIFETIME_S: Final = 3600
"""The Python client asks for a new one when it has expired."""

WRITE_BYTES: Final = 1024 * 1024
"""Collected before a thread writes them: one hop per MiB."""

STALL_S: Final = 60.0
"""A client that sends nothing for so long is gone."""

_TOKEN: Final = "upload-token"  # noqa: S105 - a purpose, not a secret

M = TypeVar("M", bound=BaseModel)


class UnknownFile(RequestError):
    """Nothing is stored there (any more)."""

    status: ClassVar[int] = 404
    error_type: ClassVar[str] = "not_found"


class FileToUpload(BaseModel):
    """What the JavaScript client says before it uploads; the Python client when it falls back."""

    model_config = ConfigDict(extra="ignore")

    file_name: str | None = Field(default=None, max_length=1024)
    content_type: str | None = Field(default=None, max_length=255)


class Part(BaseModel):
    """A part as the client knows it."""

    partNumber: Annotated[int, Field(ge=1, le=multipart.MAX_PARTS)]
    etag: Annotated[str, Field(max_length=128)]


class Parts(BaseModel):
    """All parts, in the order in which they were finished."""

    parts: Annotated[list[Part], Field(max_length=multipart.MAX_PARTS)]


FileNameHeader = Annotated[str | None, Header(alias="x-fal-file-name")]
ContentTypeHeader = Annotated[str | None, Header(alias="content-type")]


def router_for(storage: Storage, settings: Settings, owner: Owner) -> APIRouter:
    """The routes below ``/files`` and ``/storage``. Bodies of uploads are streamed, not read."""
    signer = make_signer(settings)
    staging = settings.data_dir / "staging"
    staging.mkdir(parents=True, exist_ok=True)
    max_bytes = settings.max_archive_bytes

    async def uploader(request: Request) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        holder = _token_holder(signer, token) if scheme == "Bearer" else None
        return holder if holder is not None else await owner(request)

    by_owner = [Depends(owner)]
    by_uploader = [Depends(uploader)]
    router = APIRouter(tags=["files"], include_in_schema=False)

    def file_url(key: str) -> str:
        return signer.read_url(key, expires_s=settings.url_expiry_s)

    async def store(
        request: Request, key: str, content_type: str | None, limit_bytes: int
    ) -> StoredObject:
        path = staging / random_part()
        try:
            await _receive(request, path, limit_bytes)
            return await run_in_threadpool(storage.put_file, key, path, content_type=content_type)
        finally:
            path.unlink(missing_ok=True)

    def upload_of(key: str, upload_id: str) -> multipart.Upload:
        found = multipart.find_upload(signer, key, upload_id)
        if found is None:
            raise Forbidden("This upload does not exist or has expired.")
        return found

    @router.post("/storage/auth/token")
    async def auth_token(who: Annotated[str, Depends(owner)]) -> dict[str, str]:
        """A token for the upload routes, as fal's Python client wants one first."""
        expires_at = datetime.now(UTC) + timedelta(seconds=TOKEN_LIFETIME_S)
        return {
            "token": _token_for(signer, who),
            "token_type": "Bearer",
            "base_url": signer.public_url,
            # Not "Z" at the end: Python before 3.11 can't read that.
            "expires_at": expires_at.replace(microsecond=0).isoformat(),
        }

    @router.post("/storage/upload/initiate", dependencies=by_owner)
    async def initiate(request: Request) -> dict[str, str]:
        """A URL to PUT the file to, and the one it will have."""
        file = await _parse(request, FileToUpload)
        key = _new_key(file.file_name)
        return {
            "upload_url": signer.write_url(key, expires_s=UPLOAD_URL_LIFETIME_S),
            "file_url": file_url(key),
        }

    @router.post("/storage/upload/initiate-multipart", dependencies=by_owner)
    async def initiate_multipart(request: Request) -> dict[str, str]:
        """The same in parts: the client appends ``/{n}`` and ``/complete`` to the upload URL."""
        file = await _parse(request, FileToUpload)
        key = _new_key(file.file_name)
        url = file_url(key)
        upload_id = multipart.new_upload_id(signer, key, file.content_type)
        return {"upload_url": f"{url}/multipart/{upload_id}", "file_url": url}

    @router.post("/files/upload", dependencies=by_uploader)
    async def upload(
        request: Request, name: FileNameHeader = None, content_type: ContentTypeHeader = None
    ) -> dict[str, str]:
        """The file itself as the body."""
        stored = await store(request, _new_key(name), content_type, max_bytes)
        return {"access_url": file_url(stored.key)}

    @router.post("/files/upload/multipart", dependencies=by_uploader)
    async def upload_multipart(
        name: FileNameHeader = None, content_type: ContentTypeHeader = None
    ) -> dict[str, str]:
        """Begin an upload in parts: they go below the access URL."""
        key = _new_key(name)
        upload_id = multipart.new_upload_id(signer, key, content_type)
        return {"access_url": file_url(key), "uploadId": upload_id}

    @router.put("/files/{grant}/{key:path}/multipart/{upload_id}/{part}")
    async def put_part(request: Request, key: str, upload_id: str, part: str) -> JSONResponse:
        """One part. The JavaScript client reads the body, the Python client the header."""
        found = upload_of(key, upload_id)
        # Text in the path: Starlette's own number would be a 500 for thousands of digits.
        number = int(part) if re.fullmatch(r"[0-9]{1,5}", part) else 0
        if not 1 <= number <= multipart.MAX_PARTS:
            raise BadRequest(f"Parts are numbered 1 to {multipart.MAX_PARTS}.")
        limit = min(max_bytes, multipart.MAX_PART_BYTES)
        etag = multipart.etag_of(await store(request, found.part_key(number), None, limit))
        return JSONResponse({"partNumber": number, "etag": etag}, headers={"ETag": etag})

    @router.post("/files/{grant}/{key:path}/multipart/{upload_id}/complete")
    async def complete(request: Request, key: str, upload_id: str) -> dict[str, str]:
        """All parts are there: make them one file."""
        found = upload_of(key, upload_id)
        body = await _parse(request, Parts)
        await run_in_threadpool(
            multipart.assemble,
            storage,
            found,
            {part.partNumber: part.etag for part in body.parts},
            scratch=staging / random_part(),
            max_bytes=max_bytes,
        )
        return {"access_url": file_url(key)}

    @router.put("/files/{grant}/{key:path}")
    async def put(
        request: Request, grant: str, key: str, content_type: ContentTypeHeader = None
    ) -> JSONResponse:
        """The bytes of an upload, permitted by the URL alone."""
        _check_grant(signer, WRITE, grant, key)
        stored = await store(request, key, content_type, max_bytes)
        return JSONResponse({}, headers={"ETag": f'"{stored.sha256}"'})

    @router.api_route("/files/{grant}/{key:path}", methods=["GET", "HEAD"])
    async def read(request: Request, grant: str, key: str, name: str = "") -> Response:
        """A stored file, permitted by the URL alone."""
        _check_grant(signer, READ, grant, key, name)
        stored = await run_in_threadpool(storage.stat, key)
        if stored is None:
            raise UnknownFile("There is no file at this URL (any more).")
        return file_response(request, storage, stored, name or key.rpartition("/")[2])

    return router


async def _parse(request: Request, model: type[M]) -> M:
    """The JSON body as ``model``, read after the permission was checked and up to a limit.

    FastAPI would read a body of any size first.
    """
    try:
        return model.model_validate_json(await read_json_bytes(request))
    except ValidationError as error:
        raise InvalidInput.of(error) from None


def _new_key(file_name: str | None) -> str:
    return f"uploads/{random_part()}/{safe_file_name(file_name)}"


def _check_grant(signer: UrlSigner, purpose: str, grant: str, key: str, name: str = "") -> None:
    if not signer.allows(purpose, grant, key, name):
        raise Forbidden("This URL has expired, or was not made for this.")


def _token_for(signer: UrlSigner, owner: str) -> str:
    return f"{signer.sign(TOKEN_LIFETIME_S, _TOKEN, owner)}.{owner}"


def _token_holder(signer: UrlSigner, token: str) -> str | None:
    signed, _, owner = token.partition(".")
    return owner if signer.verify(signed, _TOKEN, owner) else None


async def _receive(request: Request, path: Path, max_bytes: int) -> None:
    """Stream the body to ``path``. Raises `BodyTooLarge` as soon as that is known."""
    too_large = BodyTooLarge(f"A file may have at most {max_bytes} bytes here.")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
        raise too_large
    body = aiter(request.stream())
    buffer = bytearray()
    size = 0
    with path.open("xb") as file:
        while True:
            try:
                async with asyncio.timeout(STALL_S):
                    chunk = await anext(body)
            except StopAsyncIteration:
                break
            except TimeoutError:
                raise BadRequest(f"The upload stood still for {STALL_S:.0f} s.") from None
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            buffer += chunk
            if len(buffer) >= WRITE_BYTES:
                await run_in_threadpool(file.write, bytes(buffer))
                buffer.clear()
        await run_in_threadpool(file.write, bytes(buffer))
