"""Keys of the database, for tests that need one."""

from typing import NamedTuple

from app.db.engine import Database
from app.keys import store
from app.keys.store import Limits


class Key(NamedTuple):
    id: str
    text: str

    @property
    def header(self) -> dict[str, str]:
        return {"authorization": f"Key {self.text}"}


def make_key(
    database: Database,
    *,
    max_queued: int | None = None,
    max_running: int | None = None,
    max_storage_bytes: int | None = None,
) -> Key:
    with database.write() as session:
        return Key(*store.create(session, "a", Limits(max_queued, max_running, max_storage_bytes)))


def revoke(database: Database, key: Key) -> None:
    with database.write() as session:
        store.revoke(session, key.id)
