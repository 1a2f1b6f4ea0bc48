"""Ids with a namespace: ``workflows/{owner}/{name}`` and ``comfy/{owner}/{name}``.

fal keeps the namespace in every URL (`fal-protocol.md` 1.1). Nothing of the kind runs here, and
each of these URLs says so in the words that its clients know (C45).
"""

from typing import Annotated, Final

from fastapi import APIRouter, Depends

from app.auth import Authenticator
from app.errors import NotFound, UnknownRequest
from app.hosts import RUN_PREFIX

NAMESPACES: Final = ("workflows", "comfy")
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def make_router(authenticate: Authenticator) -> APIRouter:
    """404 for whatever is asked below a namespace, to those who may ask."""
    router = APIRouter(include_in_schema=False, dependencies=[Depends(authenticate)])

    async def absent(rest: Annotated[str, "the path below the namespace"]) -> None:
        if "requests" in rest.split("/"):
            raise UnknownRequest
        raise NotFound(
            "Workflows do not run here: this service has endpoints of its own only (/llms.txt)."
        )

    for namespace in NAMESPACES:
        for prefix in ("", RUN_PREFIX):
            router.add_api_route(
                f"{prefix}/{namespace}/{{rest:path}}", absent, methods=list(METHODS)
            )
    return router
