"""Why a file could not be fetched.

FetchError
├── UrlRefused          the URL itself: scheme, port, spelling, an address instead of a name
│   └── AddressRefused  its host isn't on the public internet, or can't be found
├── DownloadFailed      the server's answer, or the connection, also after trying again
└── FileTooLarge        more bytes than allowed

All of them are shown to the user as they are. They name the host that the user named, never an
address it resolved to, nor whether something listens there.
"""

from collections.abc import Mapping
from typing import ClassVar


class FetchError(Exception):
    """A download that did not happen. ``type`` and ``ctx`` are fal's (`spec/fal-protocol.md` 2.6).

    ``users_fault``: the URL or what is behind it must change; billed are 0 units either way.
    """

    type: ClassVar[str] = "file_download_error"
    users_fault: ClassVar[bool] = True

    def __init__(self, message: str, ctx: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.ctx = dict(ctx or {})


class UrlRefused(FetchError):
    """Refused before anything was looked up."""


class AddressRefused(UrlRefused):
    """Refused before anything was connected. One text for "not found" and for "not public": the
    difference would tell a stranger which names exist inside."""

    def __init__(self, host: str) -> None:
        super().__init__(
            f"The host {host!r} is not reachable on the public internet. Upload the file instead, "
            "or ask the operator of this service to allow the host."
        )


class DownloadFailed(FetchError):
    """The server was asked, and the file did not come whole."""


class FileTooLarge(FetchError):
    """Stopped at the limit; ``ctx`` has it as ``max_size``."""

    type: ClassVar[str] = "file_too_large"

    def __init__(self, max_bytes: int) -> None:
        super().__init__(
            f"The file is larger than {max_bytes} bytes, the most this service downloads.",
            {"max_size": max_bytes},
        )
