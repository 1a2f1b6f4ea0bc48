"""What can be wrong with one media file; see `preprocessing.errors` for the tree.

MediaError
└── TooShort            fewer frames than a sample needs; such clips are skipped, not refused
Exception
└── MissingFrames       internal: the container promised frames that do not decode
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import av

from preprocessing.errors import MediaError
from preprocessing.names import short


class TooShort(MediaError):
    """A span with fewer frames than a sample needs."""

    default_type = "video_duration_too_short"

    def __init__(self, message: str, *, ctx: Mapping[str, object] | None = None) -> None:
        super().__init__(message, reason="too_short", ctx=ctx)


class MissingFrames(Exception):
    """Frames that the container lists and the decoder does not give."""


@contextmanager
def decoder_errors(name: str) -> Iterator[None]:
    """Turn what FFmpeg raises into a `MediaError` about the file called ``name``.

    Faults of this machine (memory, disk, permissions) pass through: they are not the user's.
    """
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, (MemoryError, PermissionError, FileNotFoundError)):
            raise
        reason = error.strerror or type(error).__name__
        raise MediaError(
            f"{short(name)} can't be decoded ({reason}). The file is damaged or not what its "
            "name says: export it again as H.264 in .mp4.",
            reason="unreadable",
        ) from error
