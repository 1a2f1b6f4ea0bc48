"""Builders of zips, hostile ones too: every header field can be made to lie."""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

UTF8 = 0x0800


@dataclass
class RawEntry:
    """One entry; None means the honest value."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    mode: int = 0
    crc: int | None = None
    packed: bytes | None = None
    declared_size: int | None = None
    declared_packed: int | None = None
    local_name: bytes | None = None
    header_offset: int | None = None
    extra: bytes = b""
    """Of the central header."""

    def sealed(self) -> bytes:
        if self.packed is not None:
            return self.packed
        if self.method == 8:
            deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
            return deflate.compress(self.data) + deflate.flush()
        return self.data


@dataclass
class RawZip:
    """Bytes of a zip. ``prefix`` comes first and is not counted in the offsets."""

    entries: list[RawEntry]
    prefix: bytes = b""
    comment: bytes = b""
    num_entries: int | None = None
    directory_offset: int | None = None

    def build(self) -> bytes:
        body = io.BytesIO()
        directory = io.BytesIO()
        for entry in self.entries:
            offset = body.tell() if entry.header_offset is None else entry.header_offset
            packed = entry.sealed()
            local_name = entry.name if entry.local_name is None else entry.local_name
            crc = zlib.crc32(entry.data) if entry.crc is None else entry.crc
            size = len(entry.data) if entry.declared_size is None else entry.declared_size
            length = len(packed) if entry.declared_packed is None else entry.declared_packed
            common = struct.pack("<HHHHIII", entry.flags, entry.method, 0, 0x21, crc, length, size)
            if entry.header_offset is None:
                body.write(b"PK\x03\x04" + struct.pack("<H", 20) + common)
                body.write(struct.pack("<HH", len(local_name), 0) + local_name + packed)
            directory.write(b"PK\x01\x02" + struct.pack("<BBH", 20, 3, 20) + common)
            directory.write(
                struct.pack(
                    "<HHHHHII", len(entry.name), len(entry.extra), 0, 0, 0, entry.mode << 16, offset
                )
            )
            directory.write(entry.name + entry.extra)
        start = body.tell() if self.directory_offset is None else self.directory_offset
        count = len(self.entries) if self.num_entries is None else self.num_entries
        end = b"PK\x05\x06" + struct.pack(
            "<HHHHIIH", 0, 0, count, count, directory.tell(), start, len(self.comment)
        )
        return self.prefix + body.getvalue() + directory.getvalue() + end + self.comment


def raw(*entries: RawEntry, **fields: object) -> bytes:
    return RawZip(list(entries), **fields).build()  # type: ignore[arg-type]


def named(*names: str | bytes, data: bytes = b"x") -> bytes:
    """An honest zip of files with these names, whatever they are."""
    return raw(
        *(
            RawEntry(name, data)
            if isinstance(name, bytes)
            else RawEntry(name.encode(), data, flags=0 if name.isascii() else UTF8)
            for name in names
        )
    )


def zip_of(to: Path, files: dict[str, bytes | Path], method: int = zipfile.ZIP_STORED) -> Path:
    """An ordinary zip, as people make them."""
    with zipfile.ZipFile(to, "w", method) as archive:
        for name, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            archive.writestr(name, data)
    return to


def zip64_of(name: bytes, data: bytes) -> bytes:
    """One entry with all its sizes in 64-bit fields, as archives above 4 GB have them."""
    crc, size = zlib.crc32(data), len(data)
    fields = struct.pack("<HHHHIII", 0, 0, 0, 0x21, crc, 0xFFFFFFFF, 0xFFFFFFFF)
    extra = struct.pack("<HHQQ", 1, 16, size, size)
    local = b"PK\x03\x04" + struct.pack("<H", 45) + fields
    local += struct.pack("<HH", len(name), len(extra)) + name + extra + data
    extra = struct.pack("<HHQQQ", 1, 24, size, size, 0)
    central = b"PK\x01\x02" + struct.pack("<BBH", 45, 3, 45) + fields
    central += struct.pack("<HHHHHII", len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
    central += name + extra
    return local + central + zip64_end(1, 1, len(central), len(local))


def zip64_end(here: int, total: int, directory_bytes: int, offset: int) -> bytes:
    """The 64-bit end record, its locator, and the saturated plain record."""
    record = b"PK\x06\x06" + struct.pack(
        "<QHHIIQQQQ", 44, 45, 45, 0, 0, here, total, directory_bytes, offset
    )
    position = (directory_bytes + offset) & 0xFFFFFFFFFFFFFFFF
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, position, 1)
    plain = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return record + locator + plain


def full_overlap(num_entries: int = 1000) -> bytes:
    """Many names for one block of deflated zeros: Z29."""
    data = bytes(2**20)
    first = RawEntry(b"0.mp4", data, method=8)
    length = len(first.sealed())
    others = [
        RawEntry(
            b"%d.mp4" % number,
            b"",
            method=8,
            packed=b"",
            crc=zlib.crc32(data),
            declared_size=len(data),
            declared_packed=length,
            header_offset=0,
        )
        for number in range(1, num_entries)
    ]
    return raw(first, *others)


def quoted_overlap(num_entries: int = 40) -> bytes:
    """Fifield's construction: each file's data quotes the local headers of those after it: Z30."""
    content = bytes(4 * 2**20)
    packed = RawEntry(b"", content, method=8).sealed()
    central: list[tuple[bytes, int, int, int]] = []
    headers: list[bytes] = []
    for number in reversed(range(num_entries)):
        name = b"%04d.mp4" % number
        sizes = (zlib.crc32(content), len(packed), len(content))
        header = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0x21)
        header += struct.pack("<IIIHH", *sizes, len(name), 0) + name
        central.insert(0, (name, *sizes))
        headers.insert(0, header)
        content = header + content
        packed = _stored_block(header) + packed
    # What is on disk is the first header, then the data of the first file, which has all the rest.
    body = packed.removeprefix(_stored_block(headers[0])[:5])
    offset = 0
    directory = b""
    for header, (name, crc, length, size) in zip(headers, central, strict=True):
        directory += b"PK\x01\x02" + struct.pack("<BBHHHHH", 20, 3, 20, 0, 8, 0, 0x21)
        directory += struct.pack("<IIIHHHHHII", crc, length, size, len(name), 0, 0, 0, 0, 0, offset)
        directory += name
        offset += len(header) + 5
    end = struct.pack("<HHHHIIH", 0, 0, num_entries, num_entries, len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def _stored_block(data: bytes) -> bytes:
    """A deflate block that is not the last and holds ``data`` uncompressed."""
    return b"\x00" + struct.pack("<HH", len(data), len(data) ^ 0xFFFF) + data
