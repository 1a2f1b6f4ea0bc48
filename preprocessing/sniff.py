"""What a file is that should have been a zip: the usual mistakes by name."""

from typing import Final

_MAGIC: Final = (
    (b"PK\x03\x04", "a zip that is cut off (its end is missing): the upload was not complete"),
    (b"PK\x07\x08", "one part of a split zip: pack everything into one file"),
    (b"Rar!", "a RAR archive: pack the files as .zip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: pack the files as .zip"),
    (b"\x1f\x8b", "a gzip file (such as .tar.gz): pack the files as .zip"),
    (b"BZh", "a bzip2 file: pack the files as .zip"),
    (b"\xfd7zXZ", "an xz file: pack the files as .zip"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file: pack the files as .zip"),
    (b"\x1a\x45\xdf\xa3", "a single video (Matroska): put it into a .zip"),
    (b"RIFF", "a single media file: put it into a .zip"),
    (b"\x89PNG", "a single PNG image: put it into a .zip"),
    (b"\xff\xd8\xff", "a single JPEG image: put it into a .zip"),
    (b"%PDF", "a PDF document"),
)
_TAR_MAGIC_AT = 257


def what_is_it(head: bytes, size: int) -> str:
    """Say what a file with these first bytes is, with advice. ``head``: 512 bytes or more."""
    if size == 0:
        return "an empty file: the upload or the link is broken"
    for magic, words in _MAGIC:
        if head.startswith(magic):
            return words
    if head[4:8] == b"ftyp":
        return "a single video (MP4 or MOV): put it into a .zip"
    if head.startswith(b"ustar", _TAR_MAGIC_AT):
        return "a tar archive: pack the files as .zip"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page: the link leads to a web page (a login?), not to the file itself"
    if text.startswith((b"<?xml", b"<")):
        return "an XML document (an error message of the storage?), not the file itself"
    if text.startswith((b"{", b"[")):
        return "a JSON document, not the file itself"
    return f"something else (it begins with the bytes {head[:8].hex(' ')})"
