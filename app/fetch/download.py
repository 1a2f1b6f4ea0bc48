"""One file from a URL to the disk: capped, hashed on the way, resumed after a broken connection."""

import contextlib
import hashlib
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urljoin

import httpcore
import httpx
import stamina

from app.fetch.errors import DownloadFailed, FileTooLarge, UrlRefused
from app.fetch.policy import FetchPolicy, Target
from app.fetch.transport import Deadline, PinnedBackend
from app.settings import Settings
from app.storage.base import FALLBACK_CONTENT_TYPE, Storage, safe_file_name, sha256_of

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS: Final = 5
PASSING_STATUSES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Another try may go better."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")
_FILE_NAME = re.compile(r'filename="?([^";]+)"?', re.IGNORECASE)

Progress = Callable[[int, int | None], None]
"""Called with bytes so far and in all (None: unknown). What it raises ends the download."""


@dataclass(frozen=True)
class FetchLimits:
    """How patient a download is. Seconds, bytes per second."""

    connect_timeout_s: float = 10.0
    headers_timeout_s: float = 60.0
    """Storage services take a while to find a cold file."""
    silence_timeout_s: float = 30.0
    total_timeout_s: float = 6 * 3600.0
    """20 GiB at 1 MiB/s."""
    min_rate_bytes_s: float = 16 * 1024
    """Slower than any link on which an archive of clips was ever sent."""
    rate_window_s: float = 60.0
    """Over which that rate is taken, so that a pause is forgiven."""
    num_tries: int = 8
    """Connections, first one included."""
    wait_initial_s: float = 0.5
    wait_max_s: float = 10.0


@dataclass(frozen=True)
class Downloaded:
    """What a download brought."""

    size_bytes: int
    sha256: str
    content_type: str
    file_name: str
    etag: str = ""
    """Of the server, weak or strong; empty where it gives none."""


class Fetcher:
    """Downloads within a policy. Files of this service come from the store, not over HTTP."""

    def __init__(
        self,
        policy: FetchPolicy,
        storage: Storage,
        *,
        limits: FetchLimits | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._storage = storage
        self._limits = limits or FetchLimits()
        self._ssl_context = ssl_context or httpx.create_ssl_context()

    @classmethod
    def of(cls, settings: Settings, storage: Storage) -> "Fetcher":
        return cls(FetchPolicy.of(settings), storage)

    def download(
        self, url: str, to: Path, *, max_bytes: int, on_progress: Progress | None = None
    ) -> Downloaded:
        """Bring ``url`` to the file ``to``, which appears only when it is whole.

        Raises `FetchError`; `StorageError` when our own store fails.
        """
        got = self.download_if_changed(url, to, "", max_bytes=max_bytes, on_progress=on_progress)
        assert got is not None, "nothing is unchanged that has no ETag"
        return got

    def download_if_changed(
        self,
        url: str,
        to: Path,
        etag: str,
        *,
        max_bytes: int,
        on_progress: Progress | None = None,
    ) -> Downloaded | None:
        """As `download`. None, and no file: the server still has what it gave ``etag`` to.

        A file of this service comes from the store whatever ``etag`` is.
        """
        key = self._storage.key_of_own_url(url)
        if key is not None:
            return self._from_storage(key, to, max_bytes, on_progress)
        target = self._policy.check(url)
        arriving = to.with_name(to.name + ".part")
        try:
            with arriving.open("wb") as file:
                transfer = _Transfer(file, max_bytes, on_progress, unless=etag)
                self._with_retries(target, transfer)
            if transfer.unchanged:
                return None
            arriving.replace(to)
        finally:
            arriving.unlink(missing_ok=True)
        return Downloaded(
            transfer.size,
            transfer.digest.hexdigest(),
            transfer.content_type,
            transfer.file_name,
            transfer.any_etag,
        )

    def _from_storage(
        self, key: str, to: Path, max_bytes: int, on_progress: Progress | None
    ) -> Downloaded:
        stored = self._storage.stat(key)
        if stored is None:
            raise DownloadFailed("The uploaded file is not stored (any more); upload it again.")
        if stored.size_bytes > max_bytes:
            raise FileTooLarge(max_bytes)
        self._storage.fetch(key, to)
        if on_progress is not None:
            on_progress(stored.size_bytes, stored.size_bytes)
        return Downloaded(
            stored.size_bytes,
            stored.sha256 or sha256_of(to),
            stored.content_type,
            key.rpartition("/")[2],
        )

    def _with_retries(self, target: Target, transfer: "_Transfer") -> None:
        ends_at = time.monotonic() + self._limits.total_timeout_s
        try:
            for attempt in stamina.retry_context(
                on=_Interrupted,
                attempts=self._limits.num_tries,
                timeout=None,
                wait_initial=self._limits.wait_initial_s,
                wait_max=self._limits.wait_max_s,
                wait_jitter=self._limits.wait_initial_s,
            ):
                with attempt, _translated():
                    if time.monotonic() >= ends_at:
                        raise DownloadFailed(
                            f"The download from {target.host!r} took longer than "
                            f"{self._limits.total_timeout_s:.0f} s."
                        )
                    self._once(target, transfer, ends_at)
        except _Interrupted as error:
            raise DownloadFailed(
                f"The file could not be downloaded from {target.host!r}: {error}."
            ) from error

    def _once(self, target: Target, transfer: "_Transfer", ends_at: float) -> None:
        """One request and its redirects. Raises `_Interrupted` when another may go better."""
        deadline = Deadline()
        timeout = {
            "connect": self._limits.connect_timeout_s,
            "read": self._limits.silence_timeout_s,
            "write": self._limits.silence_timeout_s,
        }
        with httpcore.ConnectionPool(
            ssl_context=self._ssl_context,
            network_backend=PinnedBackend(self._policy, deadline),
        ) as pool:
            for _ in range(MAX_REDIRECTS + 1):
                left = ends_at - time.monotonic()
                deadline.set(min(left, self._limits.headers_timeout_s))
                with pool.stream(
                    "GET",
                    httpcore.URL(
                        scheme=target.scheme, host=target.host, port=target.port, target=target.path
                    ),
                    headers={
                        "Host": target.authority,
                        "User-Agent": "reelsmith",
                        "Accept": "*/*",
                        "Accept-Encoding": "identity",
                        **transfer.conditions(),
                    },
                    extensions={"timeout": timeout},
                ) as response:
                    deadline.set(ends_at - time.monotonic())
                    headers = _headers(response)
                    if response.status in REDIRECTS and "location" in headers:
                        target = self._next_target(target, headers["location"])
                        continue
                    if transfer.begin(response.status, headers, target):
                        return
                    for chunk in _paced(response.iter_stream(), self._limits, target):
                        transfer.add(chunk)
                    transfer.check_whole()
                    return
        raise DownloadFailed(f"The URL redirects more than {MAX_REDIRECTS} times.")

    def _next_target(self, target: Target, location: str) -> Target:
        try:
            joined = urljoin(target.url, location)
        except ValueError:  # "http://["
            raise UrlRefused("The URL redirects to something that is no URL.") from None
        following = self._policy.check(joined)
        if target.scheme == "https" and following.scheme != "https":
            raise UrlRefused("The URL redirects from https to http.")
        return following


class _Interrupted(Exception):
    """The transfer broke off, and may go on. Its text ends a sentence shown to the user."""


class _Transfer:
    """What has arrived so far, over all connections."""

    def __init__(
        self, file: BinaryIO, max_bytes: int, on_progress: Progress | None, *, unless: str
    ) -> None:
        self._file = file
        self._unless = unless
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._etag = ""
        self._total: int | None = None
        self.size = 0
        self.digest = hashlib.sha256()
        self.content_type = FALLBACK_CONTENT_TYPE
        self.file_name = ""
        self.any_etag = ""
        self.unchanged = False

    def conditions(self) -> dict[bytes | str, bytes | str]:
        """Ask for the rest, where a strong ETag proves that it is the rest of the same file; or for
        the whole, unless it is what the caller has."""
        if self.size == 0 and self._unless:
            return {"If-None-Match": self._unless}
        if self.size == 0 or not self._etag:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self._etag}

    def begin(self, status: int, headers: Mapping[str, str], target: Target) -> bool:
        """Look at the answer's head; True: nothing follows, for the caller has it.

        Raises `FetchError`, or `_Interrupted` for another try.
        """
        if status == 304 and self._unless and self.size == 0:
            self.unchanged = True
            return True
        if status in PASSING_STATUSES:
            raise _Interrupted(f"the server answers {status}")
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise DownloadFailed(
                f"The server of {target.host!r} sends the file with a content encoding, although "
                "it was asked for it as it is. Upload the file instead."
            )
        if status == 206:
            self._check_continues(headers)
        elif status == 416:
            self._restart()
            raise _Interrupted("the file changes while it is downloaded")
        elif status != 200:
            raise DownloadFailed(f"The server of {target.host!r} answers {status} for this URL.")
        else:
            self._restart()
            self.any_etag = _etag(headers.get("etag", ""))
            self._etag = "" if self.any_etag.startswith("W/") else self.any_etag
            self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
            self.file_name = _file_name(headers.get("content-disposition", ""), target)
        length = headers.get("content-length", "")
        self._total = self.size + int(length) if length.isascii() and length.isdigit() else None
        if self._total is not None and self._total > self._max_bytes:
            raise FileTooLarge(self._max_bytes)
        return False

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > self._max_bytes:
            raise FileTooLarge(self._max_bytes)
        self._file.write(chunk)
        self.digest.update(chunk)
        if self._on_progress is not None:
            self._on_progress(self.size, self._total)

    def check_whole(self) -> None:
        if self._total is not None and self.size != self._total:
            raise _Interrupted("the connection breaks off")

    def _check_continues(self, headers: Mapping[str, str]) -> None:
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        continues = (
            self.size > 0
            and match is not None
            and int(match[1]) == self.size
            and (self._total is None or match[2] in ("*", str(self._total)))
            and _etag(headers.get("etag", self._etag)) == self._etag
        )
        if not continues:
            self._restart()
            raise _Interrupted("the server sends another part than asked for")

    def _restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.size, self.digest = 0, hashlib.sha256()
        self._etag, self._total = "", None


def _paced(chunks: Iterator[bytes], limits: FetchLimits, target: Target) -> Iterator[bytes]:
    """``chunks``, as long as they come fast enough."""
    since, received = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        received += len(chunk)
        passed = time.monotonic() - since
        if passed >= limits.rate_window_s:
            if received < limits.min_rate_bytes_s * passed:
                raise DownloadFailed(
                    f"The server of {target.host!r} sends too slowly: {received / passed:.0f} "
                    f"bytes/s, at least {limits.min_rate_bytes_s:.0f} are needed."
                )
            since, received = time.monotonic(), 0


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """httpcore's errors as ours."""
    try:
        yield
    except httpcore.ConnectError as error:
        raise _Interrupted("it can't be connected") from error
    except httpcore.TimeoutException as error:
        raise _Interrupted("it takes too long to answer") from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise _Interrupted("the connection breaks off") from error


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
    }


def _etag(value: str) -> str:
    """``value`` where it can be sent back; a server that gives another has given none."""
    return value if value.isascii() else ""


def _file_name(disposition: str, target: Target) -> str:
    match = _FILE_NAME.search(disposition)
    path = target.path.partition("?")[0]
    return safe_file_name(match[1] if match else unquote(path.rpartition("/")[2]), "download.bin")
