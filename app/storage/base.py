"""The one interface to stored files, and what its implementations share.

All calls block; the gateway makes them in a thread. A key exists whole or not at all: what was
interrupted is invisible, and `Storage.sweep` removes its remains.
"""

import hashlib
import re
import secrets
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from app.storage.errors import InvalidKey, ObjectMissing

CHUNK_BYTES: Final = 256 * 1024
"""Read size of hashing and serving: disk-bound, and small enough for many readers at once."""

MAX_KEY_CHARS: Final = 512
"""Half of what S3 allows, so that a prefix of the operator's own still fits."""

MAX_FILE_NAME_CHARS: Final = 120
"""Below the 255 bytes of common file systems, with room for a suffix such as ``.part``."""

RANDOM_KEY_BYTES: Final = 16
"""128 bits: nobody guesses the key of somebody else's file (`spec/reliability.md` T8)."""

FALLBACK_CONTENT_TYPE: Final = "application/octet-stream"

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_CONTENT_TYPE = re.compile(r"[a-z0-9]+/[a-z0-9][a-z0-9.+-]*")
_SERVED_TYPES = re.compile(
    r"(video|audio)/.*|image/(png|jpeg|webp|gif)|text/plain"
    r"|application/(json|zip|x-tar|x-zip-compressed|octet-stream)"
)


@dataclass(frozen=True)
class StoredObject:
    """A file that is stored whole, as verified after it was written."""

    key: str
    size_bytes: int
    sha256: str
    """Hexadecimal."""
    content_type: str


class Storage(Protocol):
    """Files by key. Every method raises `StorageError` and nothing else of the store's own."""

    def prepare(self) -> None:
        """Make what the store needs before its first use; done again, it changes nothing."""

    def put_file(self, key: str, path: Path, *, content_type: str | None = None) -> StoredObject:
        """Store the file at ``path``, replacing what the key held; verified after the write.

        The file must be finished: a local store may share its bytes instead of copying them.
        """

    def put_tree(self, prefix: str, folder: Path, *, last: str | None = None) -> list[StoredObject]:
        """Store every file below ``folder``; returns what was stored.

        ``last`` names the one that says "all are there". Where it is stored, nothing is done.
        """

    def fetch(self, key: str, path: Path) -> StoredObject:
        """Bring a file to ``path``, verified. It must not be changed in place there."""

    def fetch_tree(
        self, prefix: str, folder: Path, *, last: str | None = None
    ) -> list[StoredObject]:
        """Bring back what `put_tree` stored; `ObjectMissing` when ``last`` isn't there."""

    def stat(self, key: str) -> StoredObject | None:
        """What is stored under ``key``, None when nothing is."""

    def open_range(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Bytes ``start`` to ``start + length`` (None: to the end), in chunks."""

    def list_keys(self, prefix: str) -> list[str]:
        """Keys below ``prefix/``, sorted."""

    def delete(self, key: str) -> None:
        """Remove a file; nothing happens when there is none."""

    def delete_tree(self, prefix: str) -> None:
        """Remove every file below ``prefix/``."""

    def signed_url(
        self, key: str, *, file_name: str | None = None, expires_s: int | None = None
    ) -> str:
        """A URL that reads this one key, under this name, until it expires."""

    def key_of_own_url(self, url: str) -> str | None:
        """The key behind a URL that this service signed and that still holds; else None."""

    def sweep(self, older_than_s: float) -> int:
        """Remove what interrupted writes left behind; returns how many."""


class TreeStorage(ABC):
    """Folders, in terms of single files."""

    @abstractmethod
    def put_file(
        self, key: str, path: Path, *, content_type: str | None = None
    ) -> StoredObject: ...

    @abstractmethod
    def fetch(self, key: str, path: Path) -> StoredObject: ...

    @abstractmethod
    def stat(self, key: str) -> StoredObject | None: ...

    @abstractmethod
    def list_keys(self, prefix: str) -> list[str]: ...

    @abstractmethod
    def delete(self, key: str) -> None: ...

    def put_tree(self, prefix: str, folder: Path, *, last: str | None = None) -> list[StoredObject]:
        """`Storage.put_tree`. A tree whose marker is there is left alone: others may be
        reading it, and what a prefix holds is always the same."""
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        if last is not None:
            if last not in names:
                raise FileNotFoundError(f"{last!r} is not in the folder {folder.name!r}")
            if self.stat(f"{prefix}/{last}") is not None:
                return []
            names.remove(last)
            names.append(last)
        return [self.put_file(f"{prefix}/{name}", folder / name) for name in names]

    def fetch_tree(
        self, prefix: str, folder: Path, *, last: str | None = None
    ) -> list[StoredObject]:
        """`Storage.fetch_tree`. The marker arrives last here too."""
        keys = self.list_keys(prefix)
        if last is not None:
            marker = f"{prefix}/{last}"
            if marker not in keys:
                raise ObjectMissing(marker)
            keys.remove(marker)
            keys.append(marker)
        folder.mkdir(parents=True, exist_ok=True)
        return [self.fetch(key, folder / key.removeprefix(f"{prefix}/")) for key in keys]


def check_key(key: str) -> str:
    """``key`` itself; raises `InvalidKey` for what could leave the store or hide in it."""
    if len(key) > MAX_KEY_CHARS or not all(map(_SEGMENT.fullmatch, key.split("/"))):
        raise InvalidKey(key[:MAX_KEY_CHARS])
    return key


def random_part() -> str:
    """A segment of a key that can't be guessed."""
    return secrets.token_hex(RANDOM_KEY_BYTES)


def safe_file_name(name: str | None, fallback: str = "upload.bin") -> str:
    """A client's file name as the last segment of a key: ASCII, no folders, suffix kept."""
    base = re.split(r"[/\\]", name or "")[-1]
    ascii_name = unicodedata.normalize("NFKD", base).encode("ascii", "ignore").decode()
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_name).lstrip(".")
    if not cleaned.strip("._-"):
        return fallback
    stem, dot, suffix = cleaned.rpartition(".")
    if not dot or len(suffix) > 16:
        return cleaned[:MAX_FILE_NAME_CHARS]
    return f"{stem[: MAX_FILE_NAME_CHARS - len(suffix) - 1]}.{suffix}"


def served_content_type(content_type: str | None) -> str:
    """The type a file is stored and served as: nothing that a browser would run or show as a page.

    An uploaded ``text/html`` becomes `FALLBACK_CONTENT_TYPE` (`spec/reliability.md` T7).
    """
    bare = (content_type or "").split(";")[0].strip().lower()
    if _CONTENT_TYPE.fullmatch(bare) and _SERVED_TYPES.fullmatch(bare):
        return bare
    return FALLBACK_CONTENT_TYPE


def attachment(file_name: str) -> str:
    """The Content-Disposition that makes a browser save a file instead of showing it."""
    return f'attachment; filename="{safe_file_name(file_name)}"'


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
