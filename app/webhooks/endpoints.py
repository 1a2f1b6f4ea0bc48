"""The public keys, where receivers look for them."""

from typing import Final

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from app.db.engine import AsyncDatabase
from app.webhooks.keys import KeyRing, jwks

JWKS_PATH: Final = "/.well-known/jwks.json"
MAX_AGE_S: Final = 3600
"""Well below the day for which a new key is published before it signs."""


def make_router(database: AsyncDatabase, keys: KeyRing) -> APIRouter:
    """The JWKS. Public: it holds nothing that is secret, and receivers have no key of ours."""
    router = APIRouter(tags=["webhooks"])

    @router.get(JWKS_PATH, summary="Public keys of the webhooks' signatures")
    async def get_jwks() -> JSONResponse:
        published = await database.read(keys.published)
        if not published:
            await database.write(keys.ensure)
            published = await database.read(keys.published)
        return JSONResponse(
            jwks(published), headers={"cache-control": f"public, max-age={MAX_AGE_S}"}
        )

    return router
