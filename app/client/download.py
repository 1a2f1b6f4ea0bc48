"""Files of a result in a folder: gone on with after a break, whole before they have their name."""

import base64
import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from app.client.errors import Refused, Unreachable
from app.client.service import PAUSES_S, Handle, Service

MARKER: Final = "request.json"
"""Says whose files a folder holds: two trainings' files have the same names."""
REPORT: Final = "report.json"
PREVIEWS: Final = "previews"
_SHA256 = re.compile(r'"([0-9a-f]{64})"')
_INLINE = re.compile(r"data:[^;,]*;base64,")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")

OnBytes = Callable[[str, int, int], None]
"""File name, bytes here, bytes in all."""


class Target:
    """The folder of one request's files. Raises `Refused` when it holds anything else's."""

    def __init__(self, folder: Path, *, new: bool = False) -> None:
        """``new``: for a request that is yet to be submitted, so no files can be its own."""
        self.folder = folder
        if folder.exists() and not folder.is_dir():
            raise Refused(f"{folder} is not a folder")
        self._id: str | None = None
        if folder.is_dir() and any(folder.iterdir()):
            self._id = _marked(folder)
            if self._id is None:
                raise Refused(f"{folder} holds other files; name a new or an empty folder")
        if new and self._id is not None:
            raise Refused(
                f"{folder} holds the files of request {self._id}; name another folder, or run",
                f"reelsmith result {self._id} --download {folder}",
            )
        _make(folder)

    def claim(self, handle: Handle) -> None:
        """From here on it is ``handle``'s. Raises `Refused` when it is another request's."""
        if self._id not in (None, handle.request_id):
            raise Refused(
                f"{self.folder} holds the files of request {self._id}; name another folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._id = handle.request_id
        self._mark({"request_id": handle.request_id, "endpoint": handle.endpoint})

    def fetch(
        self,
        service: Service,
        handle: Handle,
        result: Mapping[str, Any],
        on_bytes: OnBytes,
    ) -> dict[str, Path]:
        """All files of ``result`` and the dataset report. Returns field -> path."""
        self.claim(handle)
        found: dict[str, Path] = {}
        taken = {MARKER, REPORT, PREVIEWS}
        for field, file in files_of(result):
            name = safe_name(str(file.get("file_name") or field))
            if name in taken:
                name = safe_name(f"{field}-{name}")
            taken.add(name)
            found[field] = self.folder / name
            fetch_file(service, file, found[field], on_bytes)
        report = service.report(handle)
        if report is not None:
            found["dataset report"] = self.folder / REPORT
            found["dataset report"].write_text(json.dumps(report, indent=2))
        self._mark(
            {
                "request_id": handle.request_id,
                "endpoint": handle.endpoint,
                "files": {field: path.name for field, path in found.items()},
            }
        )
        return found

    def preview(self, service: Service, event: Mapping[str, Any]) -> Path:
        """The file of a preview event, in a folder of its own."""
        folder = self.folder / PREVIEWS
        folder.mkdir(exist_ok=True)
        path = folder / safe_name(f"step-{event.get('step', 0):06}-{event.get('index', 0)}.mp4")
        fetch_file(service, event["file"], path)
        return path

    def _mark(self, content: Mapping[str, Any]) -> None:
        (self.folder / MARKER).write_text(json.dumps(content, indent=2))


def files_of(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(field, fal's File) for each file of a result; a list's have their index behind the name."""
    for field, value in result.items():
        for index, file in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(file, Mapping) and isinstance(file.get("url"), str):
                yield (f"{field}-{index}" if isinstance(value, list) else field), file


def is_inline(file: Mapping[str, Any]) -> bool:
    """Whether the URL holds the file itself (fal's ``sync_mode``)."""
    return _INLINE.match(str(file["url"])) is not None


def _quietly(name: str, done: int, total: int) -> None:
    """Nobody looks on."""


def fetch_file(
    service: Service, file: Mapping[str, Any], path: Path, on_bytes: OnBytes = _quietly
) -> None:
    """Download ``file`` to ``path``, which is there only when it is whole.

    What an earlier call left in ``.part`` is gone on with. The size is checked, and the checksum
    where the store gives one.

    Raises:
        Refused: the URL is refused, or the file is not what the result says.
        Unreachable: the part that came is kept.
    """
    expected = file.get("file_size")
    if (inline := _INLINE.match(str(file["url"]))) is not None:
        path.write_bytes(base64.b64decode(str(file["url"])[inline.end() :]))
        return
    if path.exists() and path.stat().st_size == expected:
        return
    part = path.with_name(path.name + ".part")
    for pause in (*PAUSES_S, None):
        try:
            etag = _go_on(service, str(file["url"]), part, expected, on_bytes, path.name)
            break
        except Unreachable:
            if pause is None:
                raise
            time.sleep(pause)
    trouble = _trouble(part, expected, etag)
    if trouble:
        part.unlink()
        raise Refused(f"{path.name} {trouble}; download it again")
    part.replace(path)


def _go_on(
    service: Service, url: str, part: Path, expected: int | None, on_bytes: OnBytes, name: str
) -> str:
    """Bring ``part`` to its end; returns the file's ETag."""
    have = part.stat().st_size if part.exists() else 0
    if expected is None or have >= expected:
        have = 0
    headers = {"accept-encoding": "identity"} | ({"range": f"bytes={have}-"} if have else {})
    with service.reading(url, headers) as response:
        if response.status_code != 206:
            have = 0
        with part.open("r+b" if have else "wb") as sink:
            sink.seek(have)
            for chunk in response.iter_bytes():
                sink.write(chunk)
                have += len(chunk)
                on_bytes(name, have, expected or have)
        return str(response.headers.get("etag", ""))


def _trouble(part: Path, expected: int | None, etag: str) -> str | None:
    size = part.stat().st_size
    if expected is not None and size != expected:
        return f"has {size} bytes, not {expected}"
    if match := _SHA256.fullmatch(etag):
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != match[1]:
                return "was damaged on its way"
    return None


def safe_name(name: str) -> str:
    """A file name that stays in its folder and is not hidden.

    >>> safe_name("../../.ssh/authorized keys"), safe_name("")
    ('authorized_keys', 'file')
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    return _UNSAFE.sub("_", last).lstrip(".") or "file"


def _make(folder: Path) -> None:
    """Raises `Refused` now, and not at the end of a training, where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Refused(f"{folder} can't be written: {error.strerror}") from error


def _marked(folder: Path) -> str | None:
    try:
        return str(json.loads((folder / MARKER).read_text())["request_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
