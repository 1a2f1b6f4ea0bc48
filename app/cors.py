"""Which web pages may use this service from a browser (docs/decisions/0007).

With API keys any page may: it needs a key. The console's cookie is of no use to it: browsers don't
send that for other sites, let no page of another origin read what was asked with it, and nothing is
changed by it from there (`app/sessions.py`). Without keys, being able to reach the loopback
interface is the only permission, and any page that is open in a browser of this machine can do
that: other origins are refused.
"""

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import Scope

from app.errors import Forbidden
from app.settings import Settings

ANY: Final = "*"
OPEN_PATH: Final = re.compile(r"/files/(?!upload(/multipart)?/?$).+|/\.well-known/jwks\.json")
"""Files by signed URL: the URL is the permission, so any page that has it may use it. And the
public keys of webhooks."""
METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE"
USUAL_HEADERS: Final = "authorization, content-type, range, idempotency-key, x-fal-queue-priority"
"""Allowed where a browser asks for none by name; else those it asks for: clients pass on any."""
EXPOSED: Final = ", ".join(
    (
        "x-fal-request-id",
        "x-fal-billable-units",
        "x-fal-error-type",
        "x-fal-retryable",
        "x-fal-request-timeout-type",
        "x-fal-served-from",
        "idempotent-replayed",
        "retry-after",
        "accept-ranges",
        "content-disposition",
        "content-length",
        "content-range",
        "etag",
    )
)
MAX_AGE_S: Final = 24 * 3600
"""Browsers ask again after two hours at the latest, whatever they are told."""
_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+( *, *[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")


class CrossOrigin:
    """The rules for requests with an ``Origin``: what only browsers send.

    ``origins`` may read the answers. ``only_these``: requests of others are not even answered.
    """

    def __init__(
        self, origins: Collection[str] = (), *, only_these: bool = False, public_url: str = ""
    ) -> None:
        self._origins = frozenset(origins)
        self._only_these = only_these
        self._own = _origin_of(public_url)

    @classmethod
    def of(cls, settings: Settings) -> "CrossOrigin":
        origins = settings.cors_origins
        if origins is None:
            origins = () if settings.single_user else (ANY,)
        return cls(origins, only_these=settings.single_user, public_url=settings.public_url)

    def answer(self, scope: Scope) -> Response | None:
        """To a preflight, or to a page that may not ask; None: the route answers."""
        origin = _origin_in(scope)
        if origin is None:
            return None
        headers = Headers(scope=scope)
        may = self._allowed(scope["path"], origin) is not None
        asks = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        if asks and may:
            return _preflight(headers)
        if not may and (asks or self._only_these) and not self._is_ours(origin, headers):
            return Forbidden(
                f"Pages of {origin[:100]} may not use this service. Its operator can allow them: "
                f"REELSMITH_CORS_ORIGINS={origin[:100]}"
            ).response()
        return None

    def decorate(self, scope: Scope, reply: MutableHeaders) -> None:
        """Add what lets the page read ``reply``."""
        if self._origins and ANY not in self._origins:
            reply.add_vary_header("Origin")
        origin = _origin_in(scope)
        if origin is None:
            return
        allowed = self._allowed(scope["path"], origin)
        if allowed is not None:
            reply["access-control-allow-origin"] = allowed
            reply["access-control-expose-headers"] = EXPOSED

    def _allowed(self, path: str, origin: str) -> str | None:
        if ANY in self._origins or OPEN_PATH.fullmatch(path):
            return ANY
        return origin if origin in self._origins else None

    def _is_ours(self, origin: str, headers: Headers) -> bool:
        """A page of this service. Which hosts it answers to is the authenticator's to say."""
        host = headers.get("host", "")
        return origin == self._own or origin in (f"http://{host}", f"https://{host}")


def _preflight(headers: Headers) -> Response:
    names = headers.get("access-control-request-headers", "")
    answer = Response(
        status_code=204,
        headers={
            "access-control-allow-methods": METHODS,
            "access-control-allow-headers": names if _NAMES.fullmatch(names) else USUAL_HEADERS,
            "access-control-max-age": str(MAX_AGE_S),
            "vary": "Access-Control-Request-Headers",
        },
    )
    if "access-control-request-private-network" in headers:
        # From a page on the internet to a server in the home network: allowed as the origin is.
        answer.headers["access-control-allow-private-network"] = "true"
    return answer


def _origin_in(scope: Scope) -> str | None:
    """The ``Origin`` header. Nearly no call has one, and every call is asked."""
    for name, value in scope["headers"]:
        if name == b"origin":
            return str(value.decode("latin-1"))
    return None


def _origin_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
