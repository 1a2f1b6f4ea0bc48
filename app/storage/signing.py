"""URLs of this service that carry their own permission.

    {public_url}/files/{expires}-{signature}/{key}[?name=...]

The permission is a part of the path, because fal's Python client appends
``/multipart/{uploadId}/{n}`` to the access URL of an upload (`spec/fal-protocol.md` 1.6). A
signature is HMAC-SHA256 over purpose, expiry and what it is for, so one made for reading a key
neither writes it nor reads another one.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

from app.storage.base import check_key, safe_file_name
from app.storage.errors import InvalidKey

FILES_PATH: Final = "/files/"
SECRET_BYTES: Final = 32
"""As long as the output of HMAC-SHA256."""

READ: Final = "GET"
WRITE: Final = "PUT"


class UrlSigner:
    """Makes and checks signatures. ``public_url`` is where clients reach the gateway."""

    def __init__(
        self, secret: bytes, public_url: str, *, now: Callable[[], float] = time.time
    ) -> None:
        if len(secret) < SECRET_BYTES:
            raise ValueError(f"the signing secret has {len(secret)} bytes, needs {SECRET_BYTES}")
        self._secret = secret
        self._now = now
        self.public_url = public_url.rstrip("/")

    def read_url(self, key: str, *, expires_s: float, file_name: str | None = None) -> str:
        name = safe_file_name(file_name) if file_name else ""
        query = f"?name={quote(name)}" if name else ""
        return f"{self._path(READ, key, name, expires_s)}{query}"

    def write_url(self, key: str, *, expires_s: float) -> str:
        return self._path(WRITE, key, "", expires_s)

    def allows(self, purpose: str, grant: str, key: str, name: str = "") -> bool:
        """Whether ``grant`` (the path segment) permits this purpose on this key now."""
        return self.verify(grant, purpose, key, name)

    def key_of(self, url: str) -> str | None:
        """The key of a URL of `read_url` that still holds; None for any other URL."""
        prefix = self.public_url + FILES_PATH
        if not url.startswith(prefix):
            return None
        parts = urlsplit(url)
        grant, _, key = url[len(prefix) :].partition("?")[0].partition("/")
        name = parse_qs(parts.query).get("name", [""])[0]
        try:
            check_key(key)
        except InvalidKey:
            return None
        return key if self.allows(READ, grant, key, name) else None

    def sign(self, expires_s: float, *what: str) -> str:
        """``{expires}-{signature}`` over the parts of ``what``, valid for ``expires_s``."""
        expires = int(self._now() + expires_s)
        return f"{expires}-{self._signature(expires, what)}"

    def verify(self, signed: str, *what: str) -> bool:
        """Whether ``signed`` is from `sign` for the same parts and hasn't expired."""
        expires, _, signature = signed.partition("-")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12):
            return False
        expected = self._signature(int(expires), what)
        right = hmac.compare_digest(signature.encode(), expected.encode())
        return right and self._now() < int(expires)

    def _path(self, purpose: str, key: str, name: str, expires_s: float) -> str:
        grant = self.sign(expires_s, purpose, check_key(key), name)
        return f"{self.public_url}{FILES_PATH}{grant}/{key}"

    def _signature(self, expires: int, what: tuple[str, ...]) -> str:
        message = "\n".join((str(expires), *what)).encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


def stored_secret(path: Path) -> bytes:
    """The secret kept in ``path``, made on first use. Processes that start together agree on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    aside.touch(mode=0o600)
    try:
        aside.write_bytes(secrets.token_bytes(SECRET_BYTES))
        os.link(aside, path)  # fails when another process was first: then that one's holds
    except FileExistsError:
        pass
    finally:
        aside.unlink()
    return path.read_bytes()
