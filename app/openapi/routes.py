"""Where the documents are served. They need no key: nothing in them is anybody's."""

from functools import cache

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse

from app.errors import NotFound
from app.modes.base import AnyMode
from app.openapi.endpoint import document_of_endpoint
from app.openapi.page import index_page, page_of


class Markdown(PlainTextResponse):
    media_type = "text/markdown"


def make_router(modes: tuple[AnyMode, ...], public_url: str) -> APIRouter:
    """The documents of every endpoint."""
    router = APIRouter(tags=["documentation"])
    by_name = {name: mode for mode in modes for name in (mode.id, mode.path)}

    def found(endpoint_id: str) -> AnyMode:
        mode = by_name.get(endpoint_id.strip("/"))
        if mode is None:
            raise NotFound(f"There is no endpoint {endpoint_id[:100]!r} here; /llms.txt lists all.")
        return mode

    document = cache(lambda mode_id: document_of_endpoint(by_name[mode_id], public_url))
    page = cache(lambda mode_id: page_of(by_name[mode_id], public_url))

    @router.get("/api/openapi/queue/openapi.json")
    async def endpoint_document(endpoint_id: str) -> JSONResponse:
        """The OpenAPI document of one endpoint, in the shape of fal's."""
        return JSONResponse(document(found(endpoint_id).id))

    @router.get("/models/{endpoint_id:path}/llms.txt", response_class=Markdown)
    async def endpoint_page(endpoint_id: str) -> Markdown:
        """What an endpoint does and how it is called, as Markdown."""
        return Markdown(page(found(endpoint_id).id))

    @router.get("/llms.txt", response_class=Markdown)
    async def index() -> Markdown:
        """The endpoints of this service, as Markdown."""
        return Markdown(index_page(modes, public_url))

    return router
