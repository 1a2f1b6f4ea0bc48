"""Names of files in an archive: foreign text, never used as a path and never printed as it is."""

import unicodedata
from pathlib import PurePosixPath

SYSTEM_FOLDERS = frozenset({"__macosx", "$recycle.bin", "system volume information"})
SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini"})

MAX_SHOWN_CHARS = 120
"""Characters of a name in a message; the report always has the whole name."""

_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})
"""Unicode categories that print nothing, move the cursor or turn the text around."""


def shown(name: str) -> str:
    r"""``name`` so that it can be logged and displayed: one line, no control or direction marks.

    >>> shown("a\x1b[31m\n\u202e4pm.exe")
    'a\\u001b[31m\\u000a\\u202e4pm.exe'
    """
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in _ESCAPED_CATEGORIES else char
        for char in name
    )


def short(name: str) -> str:
    """`shown`, and cut in the middle when it is longer than `MAX_SHOWN_CHARS`."""
    text = shown(name)
    if len(text) <= MAX_SHOWN_CHARS:
        return text
    half = MAX_SHOWN_CHARS // 2
    return f"{text[:half]}…{text[-half:]}"


def listed(names: list[str], limit: int = 5) -> str:
    """Some names for a message: "a.mp4, b.mp4 and 7 more"."""
    head = ", ".join(short(name) for name in names[:limit])
    return head if len(names) <= limit else f"{head} and {len(names) - limit} more"


def folded(name: str) -> str:
    """What two names share that differ in case or in Unicode normal form only.

    Windows, macOS and Linux zip the same folder with different forms; this is Unicode's canonical
    caseless match.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())


def suffix(name: str) -> str:
    """Extension in lower case with its dot, or "". A name that is all extension has none."""
    return PurePosixPath(name).suffix.lower()


def without_suffix(name: str) -> str:
    return name[: len(name) - len(PurePosixPath(name).suffix)]


def is_system_file(name: str) -> bool:
    """Hidden files and what macOS and Windows leave behind (`__MACOSX`, `._x`, `Thumbs.db`)."""
    parts = name.split("/")
    return (
        any(part.startswith(".") for part in parts)
        or any(part.lower() in SYSTEM_FOLDERS for part in parts[:-1])
        or parts[-1].lower() in SYSTEM_FILES
    )
