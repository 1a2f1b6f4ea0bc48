"""fal's hosts on one host: which route of this service a request is for.

``POST https://fal.run/{endpoint}`` is a run, the same on ``queue.fal.run`` a submit. And with
``proxyUrl`` set, fal's JavaScript client sends everything to one path, the true URL in
``x-fal-target-url`` (`fal-protocol.md` 1.7). Both become the path of a route of this service
before it is routed; nothing is fetched, and bodies stream in both directions as ever.
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import BadRequest, RequestError

PROXY_PATHS: Final = ("/proxy", "/api/fal/proxy")
"""The short one, and the one that fal's pages use."""
TARGET_URL: Final = "x-fal-target-url"
RUN_PREFIX: Final = "/run"
FAL_RUN: Final = "fal.run"
FAL_HOSTS: Final = frozenset(
    {FAL_RUN, "queue.fal.run", "rest.fal.ai", "rest.alpha.fal.ai", "v3.fal.media"}
)
"""Whose requests this service answers."""
PORTS: Final = (None, 80, 443)


class NotForUs(RequestError):
    """The target of a proxied call is none of fal's hosts (fal's own proxies answer 412)."""

    status = 412
    error_type = "precondition_failed"


class Hosts:
    """ASGI middleware that rewrites the path of what came for one of fal's hosts."""

    def __init__(self, app: ASGIApp, run_hosts: Iterable[str] = (FAL_RUN,)) -> None:
        self.app = app
        self._run_hosts = frozenset(run_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "").lower().removesuffix(":443").removesuffix(":80")
        try:
            if scope["path"] in PROXY_PATHS:
                host = _aim(scope)
        except RequestError as refusal:
            await refusal.response()(scope, receive, send)
            return
        if host in self._run_hosts and scope["method"] == "POST":
            scope["path"] = RUN_PREFIX + scope["path"]
        await self.app(scope, receive, send)


def _aim(scope: Scope) -> str:
    """Point ``scope`` at the target of a proxied call; returns the target's host."""
    headers = MutableHeaders(scope=scope)
    target = headers.get(TARGET_URL)
    if target is None:
        raise BadRequest(f"The header {TARGET_URL} is missing: this path is for fal's clients.")
    try:
        if not target.isascii() or not target.isprintable():
            raise ValueError
        parts = urlsplit(target)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise NotForUs(f"{TARGET_URL} is no valid URL.") from None
    if parts.scheme not in ("http", "https") or host not in FAL_HOSTS or port not in PORTS:
        raise NotForUs(
            f"{TARGET_URL} must be a URL of {', '.join(sorted(FAL_HOSTS))}; this service answers "
            "such calls itself and passes nothing on to others."
        )
    del headers[TARGET_URL]
    scope["path"] = trimmed(unquote(parts.path)) or "/"
    scope["raw_path"] = parts.path.encode()
    scope["query_string"] = parts.query.encode()
    return host


def trimmed(path: str) -> str:
    """Without trailing slashes: fal's clients send them, and its asynchronous one follows no
    redirect (`fal-protocol.md` 1.2)."""
    return path.rstrip("/") if len(path) > 1 and path.endswith("/") else path
