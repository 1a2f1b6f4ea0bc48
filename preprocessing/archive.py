"""Open a foreign zip safely: judge everything first, then write under names of our own.

`zip_directory.py` reads the structure; here every entry is judged (names, methods, kinds, sizes),
and only then can a file be fetched, through a byte counter and its checksum.
"""

import hashlib
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import ArchiveError
from preprocessing.names import folded, is_system_file, short
from preprocessing.report import ArchiveFacts
from preprocessing.source import Member
from preprocessing.zip_directory import (
    ENCRYPTION_FLAGS,
    UTF8_FLAG,
    Entry,
    read_directory,
    refuse,
)

MAX_UNPACKED_BYTES = 64 * 2**30
"""Bytes of all files together: some thousand clips at 20 MB; more would not fit beside the frames
prepared from it."""

MAX_RATIO = 200
"""Unpacked bytes per byte of the zip. Video and images do not shrink (about 1); raw AVI of drawings
reaches 50; bombs start at 1000."""

RATIO_FREE_BYTES = 64 * 2**20
"""Below this many unpacked bytes the ratio is not asked: nothing can go wrong."""

MAX_COMPONENT_CHARS = 255
"""Characters of one file or folder name: no file system makes longer ones."""

MAX_FOLDER_DEPTH = 32
"""Folders in folders. Real datasets have two or three."""

STORED, DEFLATED = 0, 8
_METHOD_NAMES = {
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    93: "Zstandard",
    95: "XZ",
    97: "WavPack",
    98: "PPMd",
}
_CHUNK_BYTES = 2**20
_DRIVE = re.compile(r"^[A-Za-z]:/")


class ZipArchive:
    """A zip whose every entry was judged harmless. Raises `ArchiveError` while opening or fetching.

    Use as a context manager. A member is written by `fetch` only, one file per call; system files
    (`__MACOSX` and the like) are members too, and it is the caller's choice to leave them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = path.stat().st_size
        self._file = path.open("rb")
        try:
            self._entries = read_directory(self._file, self.size_bytes)
            self.members = tuple(sorted(_judged(self._entries, self.size_bytes), key=_order))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "ZipArchive":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def facts(self) -> ArchiveFacts:
        return zip_facts(self.path, len(self._entries))

    def fetch(self, member: Member, to: Path) -> None:
        """Unpack one member to ``to``, which must not exist."""
        with to.open("xb") as out:
            for chunk in self._chunks(member):
                out.write(chunk)

    def read(self, member: Member) -> bytes:
        return b"".join(self._chunks(member))

    def stored_bytes(self, members: list[Member]) -> int:
        return sum(member.size_bytes for member in members)

    def _chunks(self, member: Member) -> Iterator[bytes]:
        """The member's bytes, never more than declared, their checksum tested at the end."""
        entry = self._entries[member.index]
        inflated = self._inflated(entry) if entry.method == DEFLATED else self._raw(entry)
        size, crc = 0, 0
        try:
            for chunk in inflated:
                size += len(chunk)
                if size > entry.size_bytes:
                    raise refuse(f"{short(member.name)} in the zip is larger than the zip says.")
                crc = zlib.crc32(chunk, crc)
                yield chunk
        except zlib.error as error:
            raise _damaged(member.name) from error
        if size != entry.size_bytes or crc != entry.crc:
            raise _damaged(member.name)

    def _raw(self, entry: Entry) -> Iterator[bytes]:
        self._file.seek(entry.data_offset)
        left = entry.compressed_bytes
        while left and (chunk := self._file.read(min(left, _CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk

    def _inflated(self, entry: Entry) -> Iterator[bytes]:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        for packed in self._raw(entry):
            yield inflate.decompress(packed, _CHUNK_BYTES)
            while inflate.unconsumed_tail:
                yield inflate.decompress(inflate.unconsumed_tail, _CHUNK_BYTES)
        # With max_length, output can wait inside the decompressor after all input is consumed.
        while not inflate.eof and (chunk := inflate.decompress(b"", _CHUNK_BYTES)):
            yield chunk
        if not inflate.eof or inflate.unused_data:
            raise zlib.error("the compressed data does not end where the zip says")


def zip_facts(path: Path, num_entries: int = 0) -> ArchiveFacts:
    """What the report says of the archive; reads it once. Works for any file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return ArchiveFacts(size_bytes=path.stat().st_size, sha256=digest, num_entries=num_entries)


def _damaged(name: str) -> ArchiveError:
    return refuse(f"{short(name)} is damaged in the zip (its checksum is wrong). Pack it again.")


def _order(member: Member) -> tuple[str, str]:
    return member.key, member.name


def _judged(entries: list[Entry], archive_bytes: int) -> list[Member]:
    """Turn entries into members, folders left out, or refuse the archive."""
    total = sum(entry.size_bytes for entry in entries)
    if total > MAX_UNPACKED_BYTES:
        raise ArchiveError(
            f"The files in the zip have {total} bytes unpacked; at most {MAX_UNPACKED_BYTES} are "
            "allowed. Send fewer or shorter clips.",
            type="file_too_large",
            ctx={"max_size": MAX_UNPACKED_BYTES},
        )
    if total > RATIO_FREE_BYTES and total > MAX_RATIO * archive_bytes:
        raise refuse(
            f"The zip has {archive_bytes} bytes and would unpack to {total}: more than "
            f"{MAX_RATIO} times its size, which no clips do. It looks like a zip bomb."
        )
    members = []
    folders: set[str] = set()
    for index, entry in enumerate(entries):
        name = _name_of(entry)
        _judge_contents(entry, name.text)
        parents = len(name.parts) - (0 if name.is_folder else 1)
        folders.update(name.key(depth) for depth in range(1, parents + 1))
        if not name.is_folder:
            key = name.key(len(name.parts))
            members.append(Member(name.text, key, entry.size_bytes, index))
    _refuse_collisions(members, folders)
    return members


def _refuse_collisions(members: list[Member], folders: set[str]) -> None:
    """Refuse names of which programs would disagree which file they mean."""
    seen: dict[str, Member] = {}
    for member in members:
        other = seen.setdefault(member.key, member)
        if other is not member and other.name == member.name:
            raise refuse(f"{short(member.name)} is in the zip twice.")
        if other is not member and not is_system_file(member.name):
            raise refuse(
                f"{short(other.name)} and {short(member.name)} in the zip differ only in case or "
                "Unicode form. Rename one of them."
            )
        if member.key in folders:
            raise refuse(f"{short(member.name)} in the zip is a file and a folder at once.")


def _judge_contents(entry: Entry, name: str) -> None:
    if entry.flags & ENCRYPTION_FLAGS:
        raise refuse(f"{short(name)} in the zip is encrypted. Pack it without a password.")
    if entry.method not in (STORED, DEFLATED):
        method = _METHOD_NAMES.get(entry.method, f"method {entry.method}")
        raise refuse(
            f"{short(name)} in the zip uses unsupported compression ({method}). "
            "Pack it with the usual one (Deflate) or none."
        )
    kind = stat.S_IFMT(entry.unix_mode)
    if kind == stat.S_IFLNK:
        raise refuse(f"{short(name)} in the zip is a symbolic link. Pack the file itself.")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise refuse(f"{short(name)} in the zip is a device or pipe, not a file.")
    if entry.method == STORED and entry.compressed_bytes != entry.size_bytes:
        raise refuse(f"{short(name)} has two different sizes in the zip: it is damaged.")


@dataclass(frozen=True, slots=True)
class _Name:
    parts: tuple[str, ...]
    is_folder: bool
    folds: bool
    """Case and Unicode form don't matter (UTF-8); else only equal bytes are equal names."""

    @property
    def text(self) -> str:
        return "/".join(self.parts)

    def key(self, depth: int) -> str:
        """What the first ``depth`` parts are compared by."""
        path = "/".join(self.parts[:depth])
        return folded(path) if self.folds else path


def _name_of(entry: Entry) -> _Name:
    """The entry's name, or `ArchiveError`.

    Names are UTF-8 if they can be (the flag is often forgotten). Others are bytes of an unknown
    code page, shown as cp437 (4.4.4, appendix D). They pair byte for byte, because in Shift-JIS
    and GBK a byte that looks like "a", "A" or a backslash may be half of another character.
    """
    try:
        text, folds = entry.name.decode("utf-8").replace("\\", "/"), True
    except UnicodeDecodeError as error:
        if entry.flags & UTF8_FLAG:
            raise refuse("A name in the zip is not the UTF-8 it claims to be.") from error
        text, folds = entry.name.decode("cp437"), False
    if "\0" in text:
        raise refuse(f"The name {short(text)} in the zip has a zero byte.")
    if text.startswith("/") or _DRIVE.match(text):
        raise refuse(f"The name {short(text)} in the zip is an absolute path.")
    parts = tuple(part for part in text.split("/") if part not in ("", "."))
    if ".." in parts:
        raise refuse(f'The name {short(text)} in the zip leads out of the archive ("..").')
    if any(len(part) > MAX_COMPONENT_CHARS for part in parts):
        raise refuse(
            f"The name {short(text)} in the zip is longer than {MAX_COMPONENT_CHARS} characters."
        )
    if len(parts) > MAX_FOLDER_DEPTH + 1:
        raise refuse(f"{short(text)} in the zip lies more than {MAX_FOLDER_DEPTH} folders deep.")
    is_folder = text.endswith("/") or stat.S_ISDIR(entry.unix_mode)
    if not parts and not is_folder:
        raise refuse("The zip has a file without a name.")
    return _Name(parts, is_folder, folds)
