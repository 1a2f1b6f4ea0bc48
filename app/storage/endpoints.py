"""Files over HTTP: reading through signed URLs, and the uploads of both fal clients.

All uploads pass through the gateway, also those that end on S3: the size cap holds while the bytes
come, clients need to reach one host only, and fal's Python client sends its ``Authorization``
header with the raw PUT, which S3 refuses beside a presigned URL (`spec/fal-protocol.md` 1.6).
"""

from collections.abc import Awaitable, Callable
from typing import Annotated, ClassVar, TypeVar

from fastapi import APIRouter, Depends, Header
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.db.engine import AsyncDatabase
from app.errors import Forbidden, InvalidInput, RequestError
from app.requests.body import read_json_bytes
from app.settings import Settings
from app.storage import multipart
from app.storage.base import Storage
from app.storage.factory import make_signer
from app.storage.responses import file_response
from app.storage.signing import READ
from app.storage.uploads import Uploads

Owner = Callable[[Request], Awaitable[str]]
"""Who asks; raises when nobody known does (`app.auth.Authenticator`)."""

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


def router_for(
    storage: Storage, settings: Settings, owner: Owner, database: AsyncDatabase
) -> APIRouter:
    """The routes below ``/files`` and ``/storage``. Bodies of uploads are streamed, not read."""
    signer = make_signer(settings)
    uploads = Uploads(storage, settings, signer, database)
    router = APIRouter(tags=["files"])
    _add_rest_routes(router, uploads, owner)
    _add_cdn_routes(router, uploads, owner)
    _add_url_routes(router, uploads)

    @router.get("/files/{grant}/{key:path}")
    @router.head("/files/{grant}/{key:path}")
    async def read(request: Request, grant: str, key: str, name: str = "") -> Response:
        """A stored file, permitted by the URL alone."""
        if not signer.allows(READ, grant, key, name):
            raise Forbidden("This URL has expired, or was not made for this.")
        stored = await run_in_threadpool(storage.stat, key)
        if stored is None:
            raise UnknownFile("There is no file at this URL (any more).")
        return file_response(request, storage, stored, name or key.rpartition("/")[2])

    return router


def _add_rest_routes(router: APIRouter, uploads: Uploads, owner: Owner) -> None:
    """What both clients ask of fal's REST host, with a key."""

    @router.post("/storage/auth/token")
    async def auth_token(who: Annotated[str, Depends(owner)]) -> dict[str, str]:
        return uploads.token(who)

    @router.post("/storage/upload/initiate")
    async def initiate(request: Request, who: Annotated[str, Depends(owner)]) -> dict[str, str]:
        file = await _parse(request, FileToUpload)
        return await uploads.initiate(who, file.file_name)

    @router.post("/storage/upload/initiate-multipart")
    async def initiate_multipart(
        request: Request, who: Annotated[str, Depends(owner)]
    ) -> dict[str, str]:
        """The client appends ``/{n}`` and ``/complete`` to the upload URL."""
        file = await _parse(request, FileToUpload)
        url, upload_id = await uploads.begin_parts(who, file.file_name, file.content_type)
        return {"upload_url": f"{url}/multipart/{upload_id}", "file_url": url}


def _add_cdn_routes(router: APIRouter, uploads: Uploads, owner: Owner) -> None:
    """What the Python client asks of fal's CDN, with a token or a key."""

    async def uploader(request: Request) -> str:
        holder = uploads.token_holder(request.headers.get("authorization", ""))
        return holder if holder is not None else await owner(request)

    @router.post("/files/upload")
    async def upload(
        request: Request,
        who: Annotated[str, Depends(uploader)],
        name: FileNameHeader = None,
        content_type: ContentTypeHeader = None,
    ) -> dict[str, str]:
        return await uploads.upload(request, who, name, content_type)

    @router.post("/files/upload/multipart")
    async def upload_multipart(
        who: Annotated[str, Depends(uploader)],
        name: FileNameHeader = None,
        content_type: ContentTypeHeader = None,
    ) -> dict[str, str]:
        """The parts go below the access URL."""
        url, upload_id = await uploads.begin_parts(who, name, content_type)
        return {"access_url": url, "uploadId": upload_id}


def _add_url_routes(router: APIRouter, uploads: Uploads) -> None:
    """What the URLs are for that the other routes hand out; they are the permission."""

    @router.put("/files/{grant}/{key:path}/multipart/{upload_id}/{part}")
    async def put_part(request: Request, key: str, upload_id: str, part: str) -> JSONResponse:
        """The JavaScript client reads the body, the Python client the header."""
        etag = multipart.etag_of(await uploads.put_part(request, key, upload_id, part))
        return JSONResponse({"partNumber": int(part), "etag": etag}, headers={"ETag": etag})

    @router.post("/files/{grant}/{key:path}/multipart/{upload_id}/complete")
    async def complete(request: Request, key: str, upload_id: str) -> dict[str, str]:
        uploads.check_parts(key, upload_id)
        body = await _parse(request, Parts)
        etags = {part.partNumber: part.etag for part in body.parts}
        return await uploads.complete(key, upload_id, etags)

    @router.put("/files/{grant}/{key:path}")
    async def put(
        request: Request, grant: str, key: str, content_type: ContentTypeHeader = None
    ) -> JSONResponse:
        stored = await uploads.put(request, grant, key, content_type)
        return JSONResponse({}, headers={"ETag": multipart.etag_of(stored)})


async def _parse(request: Request, model: type[M]) -> M:
    """The JSON body as ``model``, read after the permission was checked and up to a limit.

    FastAPI would read a body of any size first.
    """
    try:
        return model.model_validate_json(await read_json_bytes(request))
    except ValidationError as error:
        raise InvalidInput.of(error) from None
