"""The Ed25519 keys that sign webhooks: made on first use, published as a JWKS, rotated by hand.

The private part is stored encrypted with a key that is derived from the service's secret, so a copy
of the database alone forges no webhook. An entry that the secret does not open (it was changed) is
passed over; where none is left, a new key is made that signs at once.
"""

import base64
import secrets
from dataclasses import dataclass
from typing import Any, Final

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.models import SigningKey
from app.settings import Settings
from app.storage.factory import service_secret

DAY_S: Final = 24 * 3600.0
"""Receivers may keep the JWKS that long: a new key is published for so long before it signs, and an
old one for so long after its last signature."""
NONCE_BYTES: Final = 12
KEY_BYTES: Final = 32

log = structlog.get_logger()


class RotationRefused(Exception):
    """The text says why."""


@dataclass(frozen=True)
class Key:
    """One entry of the table, opened."""

    id: str
    """Its ``kid``: 1, 2, ..."""
    private: Ed25519PrivateKey
    created_at: float
    signs_from: float
    retired_at: float | None

    def jwk(self) -> dict[str, str]:
        """The public part. ``x`` is padded, against RFC 8037: fal's Python sample decodes it
        without adding the padding, and would call every signature wrong."""
        x = base64.urlsafe_b64encode(self.private.public_key().public_bytes_raw()).decode()
        return {
            "kty": "OKP",
            "crv": "Ed25519",
            "alg": "EdDSA",
            "use": "sig",
            "kid": self.id,
            "x": x,
        }


@dataclass(frozen=True)
class _Table:
    """The table in one look, so that "no key signs" and the next id tell of the same moment."""

    now: float
    keys: list[Key]
    """What the secret opens, in the order in which it signs."""
    next_id: str

    @property
    def signing(self) -> Key | None:
        ready = [key for key in self.keys if key.signs_from <= self.now]
        return ready[-1] if ready else None


class KeyRing:
    """Functions for transactions (`Database`), with the secret that opens the table's entries."""

    def __init__(self, secret: bytes) -> None:
        derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"reelsmith webhook signing keys")
        self._cipher = ChaCha20Poly1305(derived.derive(secret))

    @classmethod
    def of(cls, settings: Settings) -> "KeyRing":
        return cls(service_secret(settings))

    def signing(self, session: Session) -> Key | None:
        """The key that signs now: of those whose time has come, the newest."""
        return self._read(session).signing

    def published(self, session: Session) -> list[Key]:
        """What a receiver should know, the oldest first."""
        table = self._read(session)
        return [
            key
            for key in table.keys
            if key.retired_at is None or key.retired_at + DAY_S > table.now
        ]

    def ensure(self, session: Session) -> Key:
        """`signing`, making the first key where there is none. Writes."""
        table = self._read(session)
        # Where another gateway was faster, the last is its key.
        found = table.signing or self._add(session, table) or self.signing(session)
        if found is None:
            raise RuntimeError("another gateway's signing key can't be opened with this secret")
        return found

    def rotate(self, session: Session) -> Key:
        """A new key, published now, which signs a day later; the old one then retires.

        Raises:
            RotationRefused: the last one is still under way.
        """
        table = self._read(session)
        if any(key.signs_from > table.now for key in table.keys):
            raise RotationRefused("A new key is published already and does not sign yet.")
        added = self._add(session, table, lead_s=DAY_S if table.keys else 0.0)
        if added is None:
            raise RotationRefused("Another rotation was made at this moment.")
        session.execute(delete(SigningKey).where(SigningKey.retired_at < db_now() - DAY_S))
        self._retire(session, added)
        return added

    def replace(self, session: Session) -> Key:
        """A new key that signs at once; the others are withdrawn and deleted: for a key that
        leaked. Receivers refuse webhooks until they have read the JWKS again.

        Raises:
            RotationRefused: another one was made at this moment.
        """
        added = self._add(session, self._read(session))
        if added is None:
            raise RotationRefused("Another rotation was made at this moment.")
        session.execute(delete(SigningKey).where(SigningKey.id != added.id))
        return added

    def _retire(self, session: Session, successor: Key) -> None:
        session.execute(
            update(SigningKey)
            .where(SigningKey.id != successor.id, SigningKey.retired_at.is_(None))
            .values(retired_at=successor.signs_from)
        )

    def _add(self, session: Session, table: "_Table", lead_s: float = 0.0) -> Key | None:
        """A new key under the next id of ``table``; None: another process has just taken that."""
        private = Ed25519PrivateKey.generate()
        try:
            with session.begin_nested():
                row = session.scalars(
                    insert(SigningKey)
                    .values(
                        id=table.next_id,
                        private=self._seal(table.next_id, private),
                        created_at=db_now(),
                        signs_from=db_now() + lead_s,
                    )
                    .returning(SigningKey)
                ).one()
        except IntegrityError:
            return None
        return self._open(row)

    def _read(self, session: Session) -> "_Table":
        rows = session.scalars(select(SigningKey).execution_options(populate_existing=True)).all()
        # Not before: a key that another gateway made in between would sign in the future.
        now = session.scalar(select(db_now())) or 0.0
        keys = [key for row in rows if (key := self._open(row)) is not None]
        return _Table(
            now,
            sorted(keys, key=lambda key: (key.signs_from, int(key.id))),
            str(max((int(row.id) for row in rows), default=0) + 1),
        )

    def _seal(self, id: str, private: Ed25519PrivateKey) -> str:
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, private.private_bytes_raw(), id.encode())
        return base64.b64encode(nonce + sealed).decode()

    def _open(self, row: SigningKey) -> Key | None:
        stored = base64.b64decode(row.private)
        try:
            raw = self._cipher.decrypt(stored[:NONCE_BYTES], stored[NONCE_BYTES:], row.id.encode())
        except InvalidTag:
            log.warning("webhooks.key_not_opened", key=row.id, reason="the secret has changed")
            return None
        return Key(
            row.id,
            Ed25519PrivateKey.from_private_bytes(raw),
            row.created_at,
            row.signs_from,
            row.retired_at,
        )


def jwks(keys: list[Key]) -> dict[str, Any]:
    """The document behind ``/.well-known/jwks.json``."""
    return {"keys": [key.jwk() for key in keys]}
