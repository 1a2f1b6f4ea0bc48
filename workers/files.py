"""Files of a result: stored however long it takes, and kept in the row by key.

URLs are signed when the result is read, so a row never holds one that has expired.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import structlog

from app.storage import Storage, StoredObject
from app.storage.errors import StorageUnavailable

log = structlog.get_logger()

PATIENCE_S: Final = 24 * 3600.0
"""A finished training may have cost hours: a store that is down for a day must not lose it."""
FIRST_PAUSE_S: Final = 2.0
LONGEST_PAUSE_S: Final = 60.0


def put_patiently(
    storage: Storage,
    key: str,
    path: Path,
    *,
    content_type: str,
    check: Callable[[], None],
    say: Callable[[str], None],
) -> StoredObject:
    """Store a file, waiting for a store that can't be reached.

    ``check`` is called about once a second and raises to give up (a lost lease, a cancel).

    Raises:
        StorageUnavailable: after `PATIENCE_S`.
        StorageRefused: at once; waiting doesn't help.
    """
    gives_up_at = time.monotonic() + PATIENCE_S
    pause = FIRST_PAUSE_S
    while True:
        check()
        try:
            return storage.put_file(key, path, content_type=content_type)
        except StorageUnavailable as error:
            if time.monotonic() > gives_up_at:
                raise
            log.warning("store.unavailable", error=str(error), pause_s=pause)
            say(f"The store can't be reached; {path.name} is kept and tried again.")
        resume_at = time.monotonic() + pause
        while time.monotonic() < resume_at:
            time.sleep(min(1.0, pause))
            check()
        pause = min(pause * 2, LONGEST_PAUSE_S)


def file_entry(stored: StoredObject, file_name: str) -> dict[str, Any]:
    """fal's `File` with the key in place of the URL."""
    return {
        "key": stored.key,
        "file_name": file_name,
        "content_type": stored.content_type,
        "file_size": stored.size_bytes,
    }
