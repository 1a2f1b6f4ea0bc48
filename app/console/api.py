"""The public API, asked by the console's pages in this process and as the person who looks."""

from collections.abc import Mapping
from typing import Any, Final

import httpx
from starlette.requests import Request
from starlette.types import ASGIApp

PASSED_ON: Final = (b"cookie", b"authorization", b"user-agent")
"""Who asks; everything else is the page's own matter."""
BASE: Final = "http://localhost"
"""Not the caller's Host, which may be no host at all. The page has checked that before it asks."""
LIMIT_S: Final = 60.0


class ApiError(Exception):
    """The API refused. ``status`` and ``message`` are for the page."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Api:
    """Asks ``app``'s own routes for one page."""

    def __init__(self, app: ASGIApp, request: Request) -> None:
        self._client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url=BASE,
            # As they came: what is not ASCII is no business of ours.
            headers=[(name, value) for name, value in request.headers.raw if name in PASSED_ON],
            timeout=LIMIT_S,
            trust_env=False,
        )

    async def get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        """The JSON at ``path``. Raises `ApiError`."""
        wanted = {name: value for name, value in (params or {}).items() if value not in (None, "")}
        reply = await self._client.get(path, params=wanted)
        if reply.status_code >= 400:
            raise ApiError(reply.status_code, _message(reply))
        return reply.json()

    async def result(self, path: str) -> tuple[int, Any]:
        """A request's result: its status and its body, whichever they are."""
        reply = await self._client.get(path)
        return reply.status_code, reply.json()


def _message(reply: httpx.Response) -> str:
    try:
        detail = reply.json().get("detail")
    except (ValueError, AttributeError):
        detail = None
    if isinstance(detail, list) and detail:
        return "; ".join(str(item.get("msg", "")) for item in detail[:3])
    if isinstance(detail, str):
        return detail
    if reply.status_code == 404:
        return "There is nothing here: the id is unknown, or belongs to another key."
    return f"The service answered {reply.status_code}."
