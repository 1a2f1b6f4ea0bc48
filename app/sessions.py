"""Sessions of browsers: a key, entered once, becomes a signed cookie.

The cookie holds whose it is and until when, signed; never the key. It ends with the key: whoever it
names must still have one that opens. Only pages of this service may use it: ``SameSite=Strict``
keeps other sites from sending it, and what changes anything must come from a page of this origin.
"""

import re
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from app.errors import Forbidden
from app.storage.signing import UrlSigner

COOKIE: Final = "reelsmith_session"
LIFETIME_S: Final = 14 * 24 * 3600
PURPOSE: Final = "browser-session"
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Sessions:
    """Makes and reads session cookies."""

    def __init__(self, signer: UrlSigner) -> None:
        self._signer = signer
        self._secure = signer.public_url.startswith("https://")
        # With this prefix no neighbouring host can set one for ours, such as its own session.
        self._cookie = f"__Host-{COOKIE}" if self._secure else COOKIE

    def begin(self, response: Response, owner: str) -> None:
        """Let ``response`` tell the browser who it is."""
        value = f"{self._signer.sign(LIFETIME_S, PURPOSE, owner)}.{owner}"
        response.set_cookie(
            self._cookie,
            value,
            max_age=LIFETIME_S,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )

    def end(self, response: Response) -> None:
        response.delete_cookie(
            self._cookie, path="/", secure=self._secure, httponly=True, samesite="strict"
        )

    def owner_of(self, request: Request) -> str | None:
        """Whose session the request carries; None without one, or with one that does not hold.

        Raises `Forbidden` when it would change something and no page of this service sent it.
        """
        signed, _, owner = request.cookies.get(self._cookie, "").partition(".")
        if not _OWNER.fullmatch(owner) or not self._signer.verify(signed, PURPOSE, owner):
            return None
        if request.method not in SAFE_METHODS:
            self.check_origin(request)
        return owner

    def check_origin(self, request: Request) -> None:
        """Raises `Forbidden` unless a page of this service sends the request.

        Browsers name the page's origin with everything that is not a plain read.
        """
        origin = request.headers.get("origin", "")
        host = request.headers.get("host", "")
        ours = urlsplit(self._signer.public_url)
        own = (f"http://{host}", f"https://{host}", f"{ours.scheme}://{ours.netloc}")
        if origin not in own:
            raise Forbidden("Only pages of this service may do this with a browser's session.")
