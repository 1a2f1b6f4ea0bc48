"""Who asks. A key is one opaque text: ``Authorization: Key <key>`` or ``Bearer <key>``."""

import functools
import hashlib
import hmac
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import Request

from app.db.engine import AsyncDatabase
from app.errors import Forbidden, NotAuthenticated
from app.keys.table import KeyTable
from app.sessions import Sessions
from app.settings import Settings, is_loopback

SINGLE_USER: Final = "local"
"""The owner of everything as long as there is no key."""
SCHEMES: Final = ("Key", "Bearer")
ENVIRONMENT_PREFIX: Final = "key-"
"""How owners begin whose key is of the environment."""
OWNER_HEX_DIGITS: Final = 32
"""128 bits of the key's hash: enough to tell owners apart, useless for finding the key."""


def owner_of(key: str) -> str:
    """The name under which a key's requests are stored; the key itself is stored nowhere."""
    return (
        ENVIRONMENT_PREFIX
        + hashlib.sha256(b"owner\0" + key.encode()).hexdigest()[:OWNER_HEX_DIGITS]
    )


def is_operator(owner: str) -> bool:
    """Whether this is somebody who runs the service."""
    return owner == SINGLE_USER or may_change_keys(owner)


def may_change_keys(owner: str) -> bool:
    """Keys of the environment may. The single user may not from a browser: the first key ends that
    mode for good, and no key of the database is an operator's."""
    return owner.startswith(ENVIRONMENT_PREFIX)


class Authenticator:
    """Turns a request into its owner. Called as a dependency of every route that has one.

    Keys are those of the environment, then those of the database. Single-user mode ends for good
    with the first key of the database: revoking the last one closes the service.
    """

    def __init__(
        self,
        keys: Iterable[SecretStr],
        table: KeyTable,
        *,
        public_url: str,
        host: str,
        sessions: Sessions | None = None,
    ) -> None:
        """``host`` is the one listened on: what it reaches decides about single-user mode.

        ``sessions``: browsers may come with a cookie instead of a key.
        """
        secrets = [key.get_secret_value() for key in keys]
        self._owners = [(_digest(key), owner_of(key)) for key in secrets]
        self._table = table
        self.sessions = sessions
        self._may_be_open = not secrets and is_loopback(host)
        self._public_host = urlsplit(public_url).hostname

    @classmethod
    def of(cls, settings: Settings, database: AsyncDatabase) -> "Authenticator":
        return cls(
            settings.api_keys,
            KeyTable(database),
            public_url=settings.public_url,
            host=settings.host,
            sessions=Sessions(database, settings.public_url),
        )

    async def __call__(self, request: Request) -> str:
        """The owner. Raises `NotAuthenticated`, `Forbidden` in single-user mode, `Unavailable`."""
        if not await self.needs_key():
            self._check_host(request)
            return SINGLE_USER
        headers = request.headers.getlist("authorization")
        if not headers and (owner := await self._of_session(request)) is not None:
            return owner
        if len(headers) != 1:
            raise NotAuthenticated(
                "Authentication is required: send the header 'Authorization: Key <your key>'."
            )
        scheme, _, key = headers[0].partition(" ")
        owner = await self.owner_of_key(key.strip()) if scheme in SCHEMES else None
        if owner is None:
            raise NotAuthenticated("Invalid key credentials.")
        return owner

    async def needs_key(self) -> bool:
        """False in single-user mode."""
        return not self._may_be_open or await self._table.used()

    async def _of_session(self, request: Request) -> str | None:
        """Who a browser's cookie names, while that owner's key still opens."""
        owner = await self.sessions.owner_of(request) if self.sessions else None
        if owner is None:
            return None
        if any(owner == known for _, known in self._owners) or await self._table.opens(owner):
            return owner
        return None

    async def owner_of_key(self, key: str) -> str | None:
        """Whose key this is; None where nobody has it."""
        # Digests have one length, and every key is looked at: the time tells nothing.
        presented, found = _digest(key), None
        for digest, owner in self._owners:
            if hmac.compare_digest(presented, digest):
                found = owner
        return found or await self._table.owner_of(presented.hex())

    def _check_host(self, request: Request) -> None:
        """Without keys, the name it is called by is what keeps strange web pages out: a page whose
        own name was made to point to 127.0.0.1 still sends that name (DNS rebinding)."""
        host = _host_name(request.headers.get("host", ""))
        if not is_loopback(host) and host != self._public_host:
            raise Forbidden(
                "Without API keys the service answers only to localhost and to the host of "
                "REELSMITH_PUBLIC_URL. Make a key (`reelsmith keys create`) to use other names."
            )


@functools.lru_cache(maxsize=256)
def _host_name(header: str) -> str:
    """Of a ``Host`` header, which may name a port and hold anything."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
