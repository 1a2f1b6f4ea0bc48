"""A file on its way to the service, in parts; what has arrived is not sent again.

A note of every part that arrived is kept in the user's cache folder. The next upload of the same
file to the same service goes on from there: a part is skipped when its bytes still have the
checksum that the service noted for it, whatever else has changed.
"""

import hashlib
import json
import mimetypes
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from app.client.errors import Refused, Unreachable
from app.client.service import PAUSES_S, Service

PART_BYTES: Final = 16 * 1024 * 1024
"""What is sent again after a lost connection: some seconds of a home's uplink."""
MAX_NUM_PARTS: Final = 8_000
"""The service takes 10,000; the list of them must fit into 1 MiB."""
CHUNK_BYTES: Final = 256 * 1024
"""Between two steps of the progress bar."""
ASSEMBLE_TIMEOUT_S: Final = 900.0
"""The service reads and writes the whole file once more."""

OnBytes = Callable[[int, int], None]
"""Bytes that have arrived, bytes in all."""


@dataclass
class Journal:
    """An upload that has begun. Its URLs are permissions: the file is for its owner's eyes."""

    upload_url: str
    file_url: str
    part_bytes: int
    etags: dict[str, str] = field(default_factory=dict)
    """By part number; the service's etag is the part's SHA-256 in quotes."""

    @classmethod
    def load(cls, path: Path) -> "Journal | None":
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_suffix(".part")
        aside.unlink(missing_ok=True)
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(asdict(self)))
        aside.replace(path)


def upload(
    service: Service,
    path: Path,
    *,
    name: str | None = None,
    source: Path | None = None,
    on_bytes: OnBytes = lambda done, total: None,
) -> str:
    """Returns the file's URL. ``source`` (default: ``path``) is what a later call calls the same.

    Raises:
        Refused: such as a wrong key, or more bytes than the service takes.
        Unreachable: what arrived is kept for the next call.
    """
    note = _journal_path(service, source or path)
    name = name or path.name
    known = Journal.load(note)
    if known is not None:
        try:
            return _upload(service, path, known, note, on_bytes)
        except Refused:
            # It has expired, or its parts are gone: from the beginning, then.
            note.unlink(missing_ok=True)
    content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    begun = service.post(
        "/storage/upload/initiate-multipart", {"file_name": name, "content_type": content_type}
    )
    size = path.stat().st_size
    journal = Journal(
        upload_url=begun["upload_url"],
        file_url=begun["file_url"],
        part_bytes=max(PART_BYTES, -(-size // MAX_NUM_PARTS)),
    )
    return _upload(service, path, journal, note, on_bytes)


def _upload(service: Service, path: Path, journal: Journal, note: Path, on_bytes: OnBytes) -> str:
    total = path.stat().st_size
    # An empty file still has one part, which is empty.
    offsets = range(0, max(1, total), journal.part_bytes)
    parts = []
    with path.open("rb") as file:
        for number, offset in enumerate(offsets, 1):
            file.seek(offset)
            data = file.read(journal.part_bytes)
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            if journal.etags.get(str(number)) != etag:
                _put(service, f"{journal.upload_url}/{number}", data, etag, offset, total, on_bytes)
                journal.etags[str(number)] = etag
                journal.save(note)
            on_bytes(offset + len(data), total)
            parts.append({"partNumber": number, "etag": etag})
    _patiently(
        lambda: service.file_call(
            "POST",
            f"{journal.upload_url}/complete",
            json={"parts": parts},
            timeout=ASSEMBLE_TIMEOUT_S,
        )
    )
    note.unlink(missing_ok=True)
    return journal.file_url


def _put(
    service: Service,
    url: str,
    data: bytes,
    etag: str,
    offset: int,
    total: int,
    on_bytes: OnBytes,
) -> None:
    def body() -> Iterator[bytes]:
        for start in range(0, len(data), CHUNK_BYTES):
            chunk = data[start : start + CHUNK_BYTES]
            yield chunk
            on_bytes(offset + start + len(chunk), total)

    def put() -> None:
        headers = {"content-length": str(len(data))}
        answer = service.file_call("PUT", url, content=body(), headers=headers)
        if answer.headers.get("etag") != etag:
            raise Unreachable("A part arrived otherwise than it was sent.")

    _patiently(put)


def _patiently(call: Callable[[], Any]) -> None:
    for pause in PAUSES_S:
        try:
            call()
            return
        except Unreachable:
            time.sleep(pause)
    call()


def _journal_path(service: Service, source: Path) -> Path:
    what = f"{service.url}\n{source.resolve()}".encode("utf-8", "surrogateescape")
    return _cache_folder() / "uploads" / f"{hashlib.sha256(what).hexdigest()[:32]}.json"


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "reelsmith"
