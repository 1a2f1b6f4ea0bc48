"""A folder of clips in place of a zip, for people who run the preparation by hand."""

import hashlib
from itertools import pairwise
from pathlib import Path

from preprocessing.archive import zip_facts
from preprocessing.errors import ArchiveError
from preprocessing.names import folded, short
from preprocessing.report import ArchiveFacts
from preprocessing.source import Member
from preprocessing.zip_directory import MAX_ENTRIES


def with_links(root: Path) -> list[Path]:
    """What must be readable to read all below ``root``: a folder of links, as people gather
    datasets without copying them, leads to files elsewhere."""
    return [root, *(path for path in root.rglob("*") if path.is_symlink())]


class FolderSource:
    """All files below a folder. Trusted more than a zip: it is the caller's own disk."""

    def __init__(self, root: Path) -> None:
        self._paths = sorted(path for path in root.resolve().rglob("*") if path.is_file())
        if len(self._paths) > MAX_ENTRIES:
            raise ArchiveError(
                f"The folder has {len(self._paths)} files; at most {MAX_ENTRIES} are allowed.",
                type="archive_file_count_exceeds_maximum",
                ctx={"max_count": MAX_ENTRIES, "provided_count": len(self._paths)},
            )
        names = [path.relative_to(root.resolve()).as_posix() for path in self._paths]
        members = [
            Member(name, folded(name), path.stat().st_size, index)
            for index, (name, path) in enumerate(zip(names, self._paths, strict=True))
        ]
        self.members = tuple(sorted(members, key=lambda member: (member.key, member.name)))
        for one, other in pairwise(self.members):
            if one.key == other.key:
                raise ArchiveError(
                    f"{short(one.name)} and {short(other.name)} differ only in case or Unicode "
                    "form. Rename one of them."
                )

    def __enter__(self) -> "FolderSource":
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def facts(self) -> ArchiveFacts:
        """Size and hash of all files; the hash covers names and contents in order."""
        digest = hashlib.sha256()
        for member in self.members:
            content = zip_facts(self._paths[member.index]).sha256
            digest.update(f"{member.name}\0{content}\n".encode("utf-8", "surrogateescape"))
        return ArchiveFacts(
            size_bytes=sum(member.size_bytes for member in self.members),
            sha256=digest.hexdigest(),
            num_entries=len(self.members),
        )

    def fetch(self, member: Member, to: Path) -> None:
        """A link: the decoder still sees only names of our own, and nothing is copied."""
        to.symlink_to(self._paths[member.index])

    def read(self, member: Member) -> bytes:
        return self._paths[member.index].read_bytes()

    def stored_bytes(self, members: list[Member]) -> int:
        return 0
