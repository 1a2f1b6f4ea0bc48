"""Whether the gateway may open: one that others can reach needs a key that they must have."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.engine import Database
from app.db.migrate import upgrade
from app.db.models import ApiKey
from app.settings import Settings, is_loopback


class NoKey(RuntimeError):
    """The gateway can be reached from outside, and there is no key."""


def require_key(session: Session, settings: Settings) -> None:
    """Raises `NoKey`."""
    if settings.api_keys or is_loopback(settings.host):
        return
    if session.scalar(select(ApiKey.id).where(ApiKey.revoked_at.is_(None)).limit(1)) is None:
        raise NoKey(
            f"host {settings.host!r} can be reached from outside, and there is no API key: anybody "
            "could train here. Make one with `reelsmith keys create --name NAME`, or set "
            "REELSMITH_API_KEYS, or REELSMITH_HOST=127.0.0.1"
        )


def require_key_at_start(settings: Settings) -> None:
    """The same by itself, before anything is started. Raises `NoKey`."""
    if settings.api_keys or is_loopback(settings.host):
        return
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    upgrade(settings.database_url)
    database = Database(settings.database_url)
    try:
        with database.read() as session:
            require_key(session, settings)
    finally:
        database.close()
