"""What can be wrong with a dataset.

DatasetError
├── ArchiveError            the zip itself: broken, hostile, too large
├── MediaError              one file: unreadable, refused, lying about itself
└── DatasetRuleError        the files are fine, but not what the training needs

Every one of them is the user's to mend: it becomes a 422 with fal's error body. Nothing here is
raised for a fault of ours (a full disk is an ``OSError``, a bug is an ``AssertionError``).
"""

from collections.abc import Mapping
from typing import ClassVar


class DatasetError(Exception):
    """A dataset that can't be trained on, and what to change about it.

    ``type`` is fal's error type, ``field`` the request field whose change mends it, ``ctx`` the
    numbers behind the message. The message is shown to the user as it is: it names the file as the
    archive does, never a path of this machine.
    """

    default_type: ClassVar[str] = "value_error"
    default_field: ClassVar[str] = "training_data_url"

    def __init__(
        self,
        message: str,
        *,
        type: str | None = None,
        field: str | None = None,
        ctx: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type = type or self.default_type
        self.field = field or self.default_field
        self.ctx = dict(ctx or {})


class ArchiveError(DatasetError):
    """The archive can't be opened safely."""

    default_type = "invalid_archive"


class MediaError(DatasetError):
    """One media file can't be used. ``reason`` is a short code for the report."""

    default_type = "unsupported_video_format"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "unreadable",
        type: str | None = None,
        field: str | None = None,
        ctx: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message, type=type, field=field, ctx=ctx)
        self.reason = reason


class DatasetRuleError(DatasetError):
    """The archive is readable, but breaks a rule of the training it is meant for."""
