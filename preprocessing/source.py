"""Where clips come from: a zip (`archive.py`) or, for people who run this by hand, a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from preprocessing.report import ArchiveFacts


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a source."""

    name: str
    """Path inside the source with "/", as it was stored; print it through `names.shown` only."""
    key: str
    """Equal for names that count as the same (`names.folded`); pairs captions with clips."""
    size_bytes: int
    index: int
    """Its place in the source."""


class Source(Protocol):
    """An opened and judged collection of files. Nothing is written before `fetch` is called."""

    members: tuple[Member, ...]
    """All files, folders excluded, sorted by key."""

    def facts(self) -> ArchiveFacts: ...

    def fetch(self, member: Member, to: Path) -> None:
        """Put one file at ``to``, a name we chose. Raises `ArchiveError` if it is damaged."""

    def read(self, member: Member) -> bytes:
        """A small file whole; the caller has checked ``member.size_bytes``."""

    def stored_bytes(self, members: list[Member]) -> int:
        """Bytes of disk that fetching these takes."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...
