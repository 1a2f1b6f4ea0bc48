"""Sessions of browsers: a key, entered once, becomes a cookie.

The cookie is 256 random bits; its hash is a row that says whose it is and until when. Logging out
removes the row, and so does revoking the key. Only pages of this service may use it:
``SameSite=Strict`` keeps other sites from sending it, and what changes anything must come from a
page of this origin.
"""

import hashlib
import re
import secrets
from typing import Final
from urllib.parse import urlsplit

import structlog
from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from app.clock import db_now
from app.db.engine import AsyncDatabase
from app.db.models import BrowserSession
from app.errors import Forbidden, Unavailable

COOKIE: Final = "reelsmith_session"
LIFETIME_S: Final = 14 * 24 * 3600
TOKEN_BYTES: Final = 32
"""Nobody finds one by trying, so its plain SHA-256 is safe to store."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}")

log = structlog.get_logger()


class Sessions:
    """Begins, finds and ends sessions."""

    def __init__(self, database: AsyncDatabase, public_url: str) -> None:
        self._database = database
        self._public_url = public_url
        self._secure = public_url.startswith("https://")
        # With this prefix no neighbouring host can set one for ours, such as its own session.
        self._cookie = f"__Host-{COOKIE}" if self._secure else COOKIE

    async def begin(self, response: Response, owner: str) -> None:
        """Let ``response`` tell the browser who it is."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        await self._database.write(_begin, _digest(token), owner)
        response.set_cookie(
            self._cookie,
            token,
            max_age=LIFETIME_S,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="strict",
        )

    async def end(self, request: Request, response: Response) -> None:
        """The session is over, for a copy of its cookie too."""
        await self._database.write(_end, _digest(request.cookies.get(self._cookie, "")))
        response.delete_cookie(
            self._cookie, path="/", secure=self._secure, httponly=True, samesite="strict"
        )

    async def owner_of(self, request: Request) -> str | None:
        """Whose session the request carries; None without one, or with one that is over.

        Raises `Forbidden` when it would change something and no page of this service sent it;
        `Unavailable` where the database can't be asked.
        """
        token = request.cookies.get(self._cookie, "")
        if not _TOKEN.fullmatch(token):
            return None
        try:
            owner = await self._database.read(_owner_of, _digest(token))
        except SQLAlchemyError as error:
            log.error("sessions.not_read", error=repr(error))
            raise Unavailable from error
        if owner is None:
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
        ours = urlsplit(self._public_url)
        own = (f"http://{host}", f"https://{host}", f"{ours.scheme}://{ours.netloc}")
        if origin not in own:
            raise Forbidden("Only pages of this service may do this with a browser's session.")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _begin(session: Session, digest: str, owner: str) -> None:
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= db_now()))
    now = session.scalars(select(db_now())).one()
    session.add(BrowserSession(digest=digest, owner=owner, expires_at=now + LIFETIME_S))


def _end(session: Session, digest: str) -> None:
    session.execute(delete(BrowserSession).where(BrowserSession.digest == digest))


def _owner_of(session: Session, digest: str) -> str | None:
    return session.scalar(
        select(BrowserSession.owner).where(
            BrowserSession.digest == digest, BrowserSession.expires_at > db_now()
        )
    )
