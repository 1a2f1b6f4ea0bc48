"""The zip format: from bytes to a list of entries, or to a refusal.

Section numbers are those of PKWARE's APPNOTE 6.3.10. The standard library's reader is not used: it
takes overlapping entries before 3.11.8, 3.12.2 (5 GB out of 45 kB), its answers to damaged files
change between versions, and it writes nothing that says what is wrong in words for people.
Everything here happens before a byte is written; `archive.py` then judges the entries.
"""

import struct
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import BinaryIO

from preprocessing.errors import ArchiveError
from preprocessing.rules import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from preprocessing.sniff import what_is_it

MAX_ENTRIES = 10_000
"""Files and folders. Datasets have tens to some thousands; each costs memory and a seek."""

MAX_DIRECTORY_BYTES = 16 * 2**20
"""Bytes of the central directory, held in memory: 10 000 entries at 1.6 kB each."""

MAX_PREFIX_MARKS = 1000
"""Times that the bytes before the zip may look like the end of one: a self-extractor's program has
a few. 20 GB of nothing else would be looked at for minutes."""

_SATURATED_16 = 0xFFFF
_SATURATED_32 = 0xFFFFFFFF
_MAX_COMMENT_BYTES = 0xFFFF
_SCAN_BYTES = 2**20

_LOCAL = struct.Struct("<4sHHHHHIIIHH")  # 4.3.7
_CENTRAL = struct.Struct("<4sBBHHHHHIIIHHHHHII")  # 4.3.12
_END64 = struct.Struct("<4sQHHIIQQQQ")  # 4.3.14
_END64_LOCATOR = struct.Struct("<4sIQI")  # 4.3.15
_END = struct.Struct("<4sHHHHIIH")  # 4.3.16
_EXTRA = struct.Struct("<HH")  # 4.5.1
_EXTRA_ZIP64 = 0x0001  # 4.5.3

_LOCAL_MAGIC = b"PK\x03\x04"
_CENTRAL_MAGIC = b"PK\x01\x02"
_END64_MAGIC = b"PK\x06\x06"
_END64_LOCATOR_MAGIC = b"PK\x06\x07"
_END_MAGIC = b"PK\x05\x06"

UTF8_FLAG = 0x0800
ENCRYPTION_FLAGS = 0x0001 | 0x0040 | 0x2000
"""Traditional, strong, and masked headers (4.4.4)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One central header, its place in the file checked against its local header."""

    name: bytes
    flags: int
    method: int
    crc: int
    compressed_bytes: int
    size_bytes: int
    unix_mode: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class _End:
    """What the end records say, offsets already absolute in this file."""

    position: int
    num_entries: int
    directory_start: int
    directory_bytes: int
    prefix_bytes: int
    """Bytes before the zip: a self-extractor's program."""


def refuse(message: str) -> ArchiveError:
    return ArchiveError(message, ctx={"supported_extensions": [".zip"]})


def read_directory(file: BinaryIO, size: int) -> list[Entry]:
    """All entries of the zip in ``file`` of ``size`` bytes, in the order of the directory.

    Raises `ArchiveError` when the structure is damaged or can be read in more than one way:
    counts that lie, ranges outside the file, entries that share bytes, two ends, a local header
    that disagrees with the central one.
    """
    end = _find_end(file, size)
    if end.num_entries > MAX_ENTRIES:
        raise _too_many(end.num_entries)
    if end.directory_bytes > MAX_DIRECTORY_BYTES:
        raise refuse(f"The zip's table of contents has {end.directory_bytes} bytes: too large.")
    _check_one_end(file, end, size)
    file.seek(end.directory_start)
    directory = file.read(end.directory_bytes)
    entries: list[Entry] = []
    ranges: list[tuple[int, int]] = []
    position = 0
    while position < len(directory):
        if len(entries) == MAX_ENTRIES:
            raise _too_many(MAX_ENTRIES + 1)
        entry, header_offset, position = _central(directory, position, end)
        entry = _with_local_header(file, entry, header_offset, end)
        entries.append(entry)
        ranges.append((header_offset, entry.data_offset + entry.compressed_bytes))
    if len(entries) != end.num_entries:
        raise refuse(
            f"The zip says it has {end.num_entries} entries, but lists {len(entries)}: "
            "it is damaged. Pack it again."
        )
    ranges.sort()
    for (_, stop), (start, _) in pairwise(ranges):
        if start < stop:
            raise refuse("Entries of the zip share the same bytes: it is a zip bomb or damaged.")
    return entries


def _too_many(count: int) -> ArchiveError:
    return ArchiveError(
        f"The zip has {count} entries; at most {MAX_ENTRIES} are allowed. Leave some out.",
        type="archive_file_count_exceeds_maximum",
        ctx={
            "max_count": MAX_ENTRIES,
            "provided_count": count,
            "supported_extensions": [*VIDEO_EXTENSIONS, *IMAGE_EXTENSIONS],
        },
    )


def _find_end(file: BinaryIO, size: int) -> _End:
    """The end of central directory record, plain or zip64."""
    tail_start = max(0, size - _END.size - _MAX_COMMENT_BYTES)
    file.seek(tail_start)
    tail = file.read()
    found = _positions(tail, _END_MAGIC)
    reaching = [
        at
        for at in found
        if at + _END.size <= len(tail)
        and at + _END.size + _END.unpack_from(tail, at)[-1] == len(tail)
    ]
    if not reaching:
        file.seek(0)
        head = file.read(512)
        if found and head.startswith((_LOCAL_MAGIC, _END_MAGIC)):
            raise refuse("Other bytes follow the end of the zip, or its end is cut off.")
        raise refuse(f"This is not a zip archive but {what_is_it(head, size)}.")
    if len(reaching) > 1:
        raise refuse("The zip has two ends: programs would disagree about what is in it.")
    at = reaching[0]
    _, disk, first_disk, here, total, length, offset, _ = _END.unpack_from(tail, at)
    position = tail_start + at
    locator = at - _END64_LOCATOR.size
    if locator >= 0 and tail.startswith(_END64_LOCATOR_MAGIC, locator):
        return _end64(file, tail_start + locator, position)
    if disk or first_disk or here != total:
        raise refuse("This is one part of a split zip. Pack everything into one file.")
    return _located(position, position, total, length, offset)


def _end64(file: BinaryIO, locator_at: int, end_at: int) -> _End:
    at = locator_at - _END64.size
    if at < 0:
        raise refuse("The zip's 64-bit end record is damaged.")
    file.seek(at)
    record = _END64.unpack(file.read(_END64.size))
    _, disk, claimed_at, disks = _END64_LOCATOR.unpack(file.read(_END64_LOCATOR.size))
    magic, record_bytes, _, _, this_disk, first_disk, here, total, length, offset = record
    if magic != _END64_MAGIC or record_bytes != _END64.size - 12:
        raise refuse("The zip's 64-bit end record is damaged.")
    if disk or this_disk or first_disk or disks > 1 or here != total:
        raise refuse("This is one part of a split zip. Pack everything into one file.")
    end = _located(end_at, at, total, length, offset)
    if claimed_at + end.prefix_bytes != at:
        raise refuse("The zip's 64-bit end record is not where the zip says it is.")
    return end


def _located(position: int, directory_stop: int, total: int, length: int, offset: int) -> _End:
    prefix = directory_stop - length - offset
    if prefix < 0:
        raise refuse("The zip's table of contents lies outside the file: it is damaged.")
    return _End(position, total, directory_stop - length, length, prefix)


def _check_one_end(file: BinaryIO, end: _End, size: int) -> None:
    """Refuse a second end record where another program might look for it (4.3.16).

    Inside a stored entry one is harmless: that is a zip in the zip.
    """
    file.seek(end.directory_start)
    rest = file.read(size - end.directory_start)
    others = [at for at in _positions(rest, _END_MAGIC) if end.directory_start + at != end.position]
    if others or _prefix_has_end(file, end.prefix_bytes):
        raise refuse("The zip has two ends: programs would disagree about what is in it.")


def _prefix_has_end(file: BinaryIO, prefix_bytes: int) -> bool:
    """True if the bytes before the zip end a zip of their own, or seem to all the time."""
    start = marks = 0
    while start < prefix_bytes:
        file.seek(start)
        block = file.read(min(_SCAN_BYTES + _END.size, prefix_bytes - start))
        found = _positions(block, _END_MAGIC)
        marks += len(found)
        if marks > MAX_PREFIX_MARKS:
            return True
        for at in found:
            if at + _END.size <= len(block):
                _, _, _, _, _, length, offset, _ = _END.unpack_from(block, at)
                if length + offset <= start + at:
                    return True
        start += _SCAN_BYTES
    return False


def _positions(data: bytes, magic: bytes) -> list[int]:
    found = []
    at = data.find(magic)
    while at >= 0:
        found.append(at)
        at = data.find(magic, at + 1)
    return found


def _central(directory: bytes, at: int, end: _End) -> tuple[Entry, int, int]:
    """The entry at ``at``, the offset of its local header, and where the next entry begins."""
    if len(directory) - at < _CENTRAL.size or not directory.startswith(_CENTRAL_MAGIC, at):
        raise refuse("The zip's table of contents is damaged. Pack it again.")
    (
        _, _, _, _, flags, method, _, _, crc, compressed, size,
        name_bytes, extra_bytes, comment_bytes, disk, _, attributes, offset,
    ) = _CENTRAL.unpack_from(directory, at)  # fmt: skip
    name_at = at + _CENTRAL.size
    extra_at = name_at + name_bytes
    comment_at = extra_at + extra_bytes
    next_at = comment_at + comment_bytes
    if next_at > len(directory):
        raise refuse("The zip's table of contents is cut off. Pack it again.")
    if _SATURATED_32 in (size, compressed, offset):
        size, compressed, offset = _wide(directory[extra_at:comment_at], size, compressed, offset)
    if disk not in (0, _SATURATED_16):
        raise refuse("This is one part of a split zip. Pack everything into one file.")
    entry = Entry(
        name=directory[name_at:extra_at],
        flags=flags,
        method=method,
        crc=crc,
        compressed_bytes=compressed,
        size_bytes=size,
        unix_mode=attributes >> 16,
        data_offset=0,
    )
    return entry, offset + end.prefix_bytes, next_at


def _wide(extra: bytes, *narrow: int) -> tuple[int, ...]:
    """Sizes and offset, those that are saturated taken from the zip64 field (4.5.3)."""
    while len(extra) >= _EXTRA.size:
        kind, length = _EXTRA.unpack_from(extra)
        body, extra = extra[_EXTRA.size : _EXTRA.size + length], extra[_EXTRA.size + length :]
        if kind == _EXTRA_ZIP64:
            values = iter(struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]))
            wide = [next(values, None) if v == _SATURATED_32 else v for v in narrow]
            if None not in wide:
                return tuple(v for v in wide if v is not None)
    raise refuse("The zip has an entry of 4 GB or more without its 64-bit size: it is damaged.")


def _with_local_header(file: BinaryIO, entry: Entry, header_offset: int, end: _End) -> Entry:
    """Follow the entry to its data and check that the local header tells the same story."""
    if header_offset + _LOCAL.size > end.directory_start:
        raise refuse("An entry of the zip lies outside the file: the zip is damaged or cut off.")
    file.seek(header_offset)
    header = file.read(_LOCAL.size)
    magic, _, flags, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
    name = file.read(name_bytes)
    encrypted = bool(flags & ENCRYPTION_FLAGS), bool(entry.flags & ENCRYPTION_FLAGS)
    if magic != _LOCAL_MAGIC or name != entry.name or method != entry.method:
        raise refuse("The zip's table of contents disagrees with its files: it is damaged.")
    if encrypted[0] != encrypted[1]:
        raise refuse("The zip's table of contents disagrees with its files: it is damaged.")
    data_offset = header_offset + _LOCAL.size + name_bytes + extra_bytes
    if data_offset + entry.compressed_bytes > end.directory_start:
        raise refuse("An entry of the zip lies outside the file: the zip is damaged or cut off.")
    return replace(entry, data_offset=data_offset)
