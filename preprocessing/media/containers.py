"""Open foreign media files so that FFmpeg reads that file and nothing else.

A playlist, an SVG or a concat script named ``clip.mp4`` makes FFmpeg open other files or URLs
(`reliability.md` 0.8, M1 to M14). So the container is recognised by its first bytes, its demuxer is
named explicitly, and format and protocol whitelists hold for whatever that demuxer opens.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
from av.container import InputContainer

from preprocessing.errors import MediaError
from preprocessing.media.errors import decoder_errors
from preprocessing.names import short

MAX_VIDEO_PIXELS: Final = 36 * 10**6
"""Pixels of one frame: 8K UHD is 33 million. A decoder keeps up to 16 frames."""

MAX_IMAGE_PIXELS: Final = 64 * 10**6
"""Pixels of an image: 200 MB as RGB. A phone's or camera's photo has 12 to 61 million."""

MIN_SIDE: Final = 16
"""Pixels: smaller pictures hold nothing to learn from, and some decoders can't make them."""

HEAD_BYTES: Final = 64 * 1024
"""Bytes read to recognise a file; an animated PNG tells so in its first chunks."""

_MP4_FIRST_BOXES: Final = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


@dataclass(frozen=True)
class Demuxer:
    """An FFmpeg demuxer and what to call its files."""

    name: str
    whitelist: str
    title: str


MP4: Final = Demuxer("mov", "mov,mp4,m4a,3gp,3g2,mj2", "MP4/MOV")
MATROSKA: Final = Demuxer("matroska", "matroska,webm", "Matroska/WebM")
AVI: Final = Demuxer("avi", "avi", "AVI")
PNG: Final = Demuxer("png_pipe", "png_pipe", "PNG")
JPEG: Final = Demuxer("jpeg_pipe", "jpeg_pipe", "JPEG")

_KNOWN_BUT_REFUSED: Final = (
    (b"GIF8", "a GIF animation"),
    (b"#EXTM3U", "a playlist"),
    (b"ffconcat", "a concat script"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip"),
    (b"ID3", "a sound file"),
    (b"fLaC", "a sound file"),
    (b"OggS", "an Ogg file"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x00\x00\x01\xba", "an MPEG program stream"),
    (b"FLV", "a Flash video"),
    (b"\x30\x26\xb2\x75", "a Windows Media file"),
)


def _video_demuxer(head: bytes) -> Demuxer | None:
    if head[4:8] in _MP4_FIRST_BOXES and head[8:12] not in (b"avif", b"heic", b"mif1"):
        return MP4
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return MATROSKA
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return AVI
    return None


def _image_demuxer(head: bytes) -> Demuxer | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return JPEG
    return None


def _what_it_is(head: bytes) -> str:
    """Words for a file that is not what its name says."""
    for magic, words in _KNOWN_BUT_REFUSED:
        if head.startswith(magic):
            return words
    if not head:
        return "an empty file"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "a WebP image"
    if _image_demuxer(head):
        return "a still image"
    if _video_demuxer(head):
        return "a video"
    if head[4:8] == b"ftyp":
        return "an AVIF or HEIC image"
    if not head.strip(b"\x00"):
        return "only zeros: the upload or the copy broke off"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml", b"<!doctype", b"<html", b"<mpd")):
        return "an XML, SVG or HTML text"
    if b"\x00" not in head:
        return "a text"
    return "something else"


@contextmanager
def open_video(path: Path, name: str) -> Iterator[tuple[InputContainer, Demuxer]]:
    """Open a clip (MP4/MOV, Matroska/WebM, AVI). Raises `MediaError`, also inside the block."""
    head = _read_head(path)
    demuxer = _video_demuxer(head)
    if demuxer is None:
        raise MediaError(
            f"{short(name)} is not a video but {_what_it_is(head)}. Clips can be MP4, MOV, MKV or "
            "AVI files.",
            reason="not_a_video",
            ctx={"supported_formats": ["mp4", "mov", "avi", "mkv"]},
        )
    with _open(path, name, demuxer, MAX_VIDEO_PIXELS) as container:
        yield container, demuxer


@contextmanager
def open_image(path: Path, name: str) -> Iterator[tuple[InputContainer, Demuxer]]:
    """Open a still PNG or JPEG. Raises `MediaError`, also inside the block."""
    head = _read_head(path)
    demuxer = _image_demuxer(head)
    if demuxer is None:
        raise _not_an_image(name, _what_it_is(head))
    if demuxer is PNG and b"acTL" in head[: head.find(b"IDAT")]:
        raise _not_an_image(name, "an animated PNG")
    with _open(path, name, demuxer, MAX_IMAGE_PIXELS) as container:
        yield container, demuxer


def _not_an_image(name: str, what: str) -> MediaError:
    return MediaError(
        f"{short(name)} is not a still PNG or JPEG image but {what}. Save it as PNG or JPEG.",
        reason="not_an_image",
        type="unsupported_image_format",
        ctx={"supported_formats": ["png", "jpg", "jpeg"]},
    )


def too_large(name: str, width: int, height: int, max_pixels: int) -> MediaError:
    """The error for a picture above the cap, before or after decoding."""
    return MediaError(
        f"{short(name)} has {width}x{height} pixels; at most {max_pixels // 10**6} million are "
        "decoded. Send it in a smaller size: training uses less than one million.",
        reason="too_large",
        ctx={"width": width, "height": height, "max_pixels": max_pixels},
    )


def too_small(name: str, width: int, height: int) -> MediaError:
    return MediaError(
        f"{short(name)} has only {width}x{height} pixels; at least {MIN_SIDE}x{MIN_SIDE} are "
        "needed.",
        reason="too_small",
        ctx={"width": width, "height": height, "min_side": MIN_SIDE},
    )


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


@contextmanager
def _open(path: Path, name: str, demuxer: Demuxer, max_pixels: int) -> Iterator[InputContainer]:
    options = {
        "format_whitelist": demuxer.whitelist,
        "protocol_whitelist": "file",
        # Opening decodes a frame to learn the pixel format; this bounds what that may allocate.
        "max_pixels": str(max_pixels),
    }
    with (
        decoder_errors(name),
        av.open(
            f"file:{path.absolute()}",
            format=demuxer.name,
            options=options,
            metadata_errors="replace",
        ) as container,
    ):
        yield container
