"""Files in a folder, served by the gateway through signed URLs.

    {root}/objects/{key}         the bytes
    {root}/meta/{key}.json       size, checksum, content type
    {root}/incoming/{random}     what is being written

A write becomes visible by one rename, under a lock that gateway and workers share. Hard links
stand in for copies where the file system has them, so a stored checkpoint costs no second copy.
"""

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from app.storage.base import (
    CHUNK_BYTES,
    StoredObject,
    TreeStorage,
    check_key,
    random_part,
    served_content_type,
    sha256_of,
)
from app.storage.errors import ObjectDamaged, ObjectMissing
from app.storage.signing import UrlSigner
from preprocessing.failpoints import reach


class LocalStorage(TreeStorage):
    """`Storage` in ``root``. One folder may serve several processes of one machine."""

    def __init__(self, root: Path, signer: UrlSigner, *, url_expiry_s: int) -> None:
        self._objects = root / "objects"
        self._meta = root / "meta"
        self._incoming = root / "incoming"
        self._signer = signer
        self._url_expiry_s = url_expiry_s
        self._lock_file = root / "lock"
        self.prepare()

    def prepare(self) -> None:
        for folder in (self._objects, self._meta, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock_file.touch()

    def put_file(self, key: str, path: Path, *, content_type: str | None = None) -> StoredObject:
        target, meta = self._object_path(key), self._meta_path(key)
        arriving = self._incoming / random_part()
        reach("store.before_put")
        try:
            sha256 = _link_or_copy(path, arriving)
            stored = StoredObject(
                key, arriving.stat().st_size, sha256, served_content_type(content_type)
            )
            with self._lock(fcntl.LOCK_EX):
                # Object away, facts in, object in: whoever dies between leaves no key, never a
                # key whose facts are those of another file.
                target.unlink(missing_ok=True)
                _write_facts(meta, stored)
                reach("store.between")
                target.parent.mkdir(parents=True, exist_ok=True)
                arriving.rename(target)
                _sync_folder(target.parent)
        finally:
            arriving.unlink(missing_ok=True)
        reach("store.after_put")
        return stored

    def fetch(self, key: str, path: Path) -> StoredObject:
        path.parent.mkdir(parents=True, exist_ok=True)
        arriving = path.with_name(path.name + ".part")
        arriving.unlink(missing_ok=True)
        with self._lock(fcntl.LOCK_SH):
            stored = self._facts(key)
            if stored is None:
                raise ObjectMissing(key)
            _link(self._object_path(key), arriving)
        try:
            if not arriving.exists():  # another file system: the copy needs no lock
                _copy(self._object_path(key), arriving)
            _verify(stored, arriving)
            arriving.replace(path)
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        finally:
            arriving.unlink(missing_ok=True)
        return stored

    def stat(self, key: str) -> StoredObject | None:
        with self._lock(fcntl.LOCK_SH):
            return self._facts(key)

    def open_range(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        try:
            file = self._object_path(key).open("rb")
        except FileNotFoundError:
            raise ObjectMissing(key) from None
        with file:
            file.seek(start)
            left = length if length is not None else os.fstat(file.fileno()).st_size - start
            while left > 0:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise ObjectDamaged(key, f"{left} bytes are missing at its end")
                left -= len(chunk)
                yield chunk

    def list_keys(self, prefix: str) -> list[str]:
        # Not `Path.rglob`: it fails where a folder is removed meanwhile, by another sweep.
        found = os.walk(self._object_path(prefix), onerror=_unless_gone)
        return sorted(
            (Path(folder) / name).relative_to(self._objects).as_posix()
            for folder, _, names in found
            for name in names
        )

    def delete(self, key: str) -> None:
        target, meta = self._object_path(key), self._meta_path(key)
        with self._lock(fcntl.LOCK_EX):
            target.unlink(missing_ok=True)
            meta.unlink(missing_ok=True)
            _prune(target.parent, self._objects)
            _prune(meta.parent, self._meta)

    def delete_tree(self, prefix: str) -> None:
        check_key(prefix)
        with self._lock(fcntl.LOCK_EX):
            for root in (self._objects, self._meta):
                folder = root / prefix
                if folder.is_dir():
                    away = self._incoming / random_part()
                    folder.rename(away)
                    _prune(folder.parent, root)
                    shutil.rmtree(away)

    def signed_url(
        self, key: str, *, file_name: str | None = None, expires_s: int | None = None
    ) -> str:
        return self._signer.read_url(
            key, expires_s=expires_s or self._url_expiry_s, file_name=file_name
        )

    def key_of_own_url(self, url: str) -> str | None:
        return self._signer.key_of(url)

    def sweep(self, older_than_s: float) -> int:
        before = time.time() - older_than_s
        removed = 0
        for path in self._incoming.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime >= before:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
                removed += 1
        return removed

    def _object_path(self, key: str) -> Path:
        return self._objects / check_key(key)

    def _meta_path(self, key: str) -> Path:
        return self._meta / f"{check_key(key)}.json"

    def _facts(self, key: str) -> StoredObject | None:
        target, meta = self._object_path(key), self._meta_path(key)
        if not target.is_file() or not meta.is_file():
            return None
        return StoredObject(key=key, **json.loads(meta.read_bytes()))

    @contextlib.contextmanager
    def _lock(self, how: int) -> Iterator[None]:
        with self._lock_file.open("rb") as file:
            fcntl.flock(file, how)  # released when the file is closed, also by a kill
            yield


def _write_facts(meta: Path, stored: StoredObject) -> None:
    meta.parent.mkdir(parents=True, exist_ok=True)
    meta.write_text(
        json.dumps(
            {
                "size_bytes": stored.size_bytes,
                "sha256": stored.sha256,
                "content_type": stored.content_type,
            }
        )
    )


def _link_or_copy(source: Path, target: Path) -> str:
    """Bring ``source`` to ``target``, on disk for good; returns its SHA-256 as read back there."""
    expected = None
    if not _link(source, target):
        expected = sha256_of(source)
        _copy(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    sha256 = sha256_of(target)
    if expected is not None and sha256 != expected:
        raise ObjectDamaged(target.name, "the copy differs from its source")
    return sha256


def _link(source: Path, target: Path) -> bool:
    """Hard-link, where that is possible. A symbolic link is followed: its target is what counts."""
    try:
        os.link(source.resolve(strict=True), target)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("xb") as writing:
        shutil.copyfileobj(reading, writing, CHUNK_BYTES)
        writing.flush()
        os.fsync(writing.fileno())


def _verify(stored: StoredObject, path: Path) -> None:
    size = path.stat().st_size
    if size != stored.size_bytes:
        raise ObjectDamaged(stored.key, f"{size} bytes instead of {stored.size_bytes}")
    if sha256_of(path) != stored.sha256:
        raise ObjectDamaged(stored.key, "its checksum differs")


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _prune(folder: Path, root: Path) -> None:
    """Remove folders that became empty, up to ``root``."""
    while folder != root:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
