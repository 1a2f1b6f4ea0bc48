"""Media files of the M rows that no other test makes: containers patched byte by byte."""

import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.preprocessing.media.made import (
    HEIGHT,
    WIDTH,
    make_clip,
    numbered,
    numbered_clip,
    patch,
)

Make = Callable[[Path], object]
"""Writes the file at the path."""


def holding(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def patched(count: int, change: Callable[[bytearray], None], **how: object) -> Make:
    """A clip of ``count`` numbered frames with some bytes changed."""

    def make(path: Path) -> None:
        data = bytearray(numbered_clip(path, count, **how).read_bytes())
        change(data)
        path.write_bytes(data)

    return make


def put(data: bytearray, box: bytes, offset: int, form: str, *values: int) -> None:
    """Overwrite numbers ``offset`` bytes behind the name of the first ``box``."""
    at = data.index(box, data.index(b"moov")) + 4 + offset
    struct.pack_into(form, data, at, *values)


def size_of_65535(data: bytearray) -> None:
    put(data, b"avc1", 24, ">HH", 65535, 65535)


def two_billion_times(data: bytearray) -> None:
    put(data, b"stts", 8, ">I", 2**31 - 1)


def two_billion_sizes(data: bytearray) -> None:
    put(data, b"stsz", 8, ">I", 2**31 - 1)


def a_century(data: bytearray) -> None:
    put(data, b"mvhd", 16, ">I", 2**32 - 2)


def without_index(data: bytearray) -> None:
    del data[data.index(b"moov") - 4 :]


def cut_in_half(data: bytearray) -> None:
    del data[len(data) * 6 // 10 :]


def flipped_bits(seed: int, count: int = 200) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        random = np.random.default_rng(seed)
        for position in random.integers(64, len(data), count):
            data[position] ^= 1 << int(random.integers(8))

    return change


def external_reference(target: Path) -> Make:
    """A MOV whose track lies in another file: an ``alis`` record in its ``dref`` (M13)."""

    def change(data: bytearray) -> None:
        name = str(target).encode()
        name += b"\0" * (len(name) % 2)
        record = bytes(10) + b"\0" + bytes(27) + bytes(12) + b"\0" + bytes(63) + bytes(16)
        record += struct.pack(">HH", 1, 1) + bytes(16)
        record += struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)
        entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
        at = data.index(b"url \0\0\0\x01", data.index(b"dref")) - 4
        for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
            start = data.index(box, data.index(b"moov")) - 4
            (size,) = struct.unpack_from(">I", data, start)
            struct.pack_into(">I", data, start, size + len(entry) - 12)
        data[at : at + 12] = entry

    return patched(20, change)


def million_frames(path: Path) -> None:
    """M17: a time table of a million frames of raw video, every one of them there (a hole in the
    file); nobody may have to read them all to find out that they are too many."""
    count, size = 1_000_000, 16 * 16
    make_clip(
        path,
        [patch((0, 0, 0), 16, 16)] * 2,
        codec="rawvideo",
        pixel_format="gray",
        options={},
        container_options={"movflags": "faststart", "use_editlist": "0"},
    )
    data = bytearray(path.read_bytes())
    put(data, b"stts", 4, ">III", 1, count, 512)
    put(data, b"stsc", 4, ">IIII", 1, 1, count, 1)
    put(data, b"stsz", 4, ">II", size, count)
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate(len(data) + count * size)


def picture_in_mov(width: int, height: int) -> Make:
    """A QuickTime video whose one frame is a PNG of zeros: small on disk, huge when decoded."""

    def make(path: Path) -> None:
        with av.open(str(path), "w", format="mov") as container:
            stream = container.add_stream("png", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "monob"
            packet = av.Packet(black_png(width, height))
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, 0, 0, True
            packet.time_base = Fraction(1, 25)
            container.mux(packet)

    return make


def chunk(kind: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)


def black_png(width: int, height: int, extra_bytes: int = 0) -> bytes:
    """One bit per pixel, all zeros; ``extra_bytes`` more inflate behind the picture."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    deflate = zlib.compressobj(9)
    total = min((width // 8 + 1) * height, 2**26) + extra_bytes
    packed = b"".join(deflate.compress(bytes(2**20)) for _ in range(total // 2**20))
    packed += deflate.compress(bytes(total % 2**20)) + deflate.flush()
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def avi_with_playlist(playlist: bytes) -> Make:
    """The attack of 2017 (M4): an AVI whose subtitle stream begins with GAB2 and a playlist."""

    def make(path: Path) -> None:
        pictures = jpegs(12)
        frames = b"".join(riff(b"00dc", picture) for picture in pictures)
        gab2 = b"GAB2\0" + struct.pack("<HI", 2, 0) + struct.pack("<HI", 4, len(playlist))
        movi = listed(b"movi", riff(b"01tx", gab2 + playlist) + frames)
        video = struct.pack("<4s4sIHHIIIIIIII4H", b"vids", b"MJPG", 0, 0, 0, 0, 1, 25, 0,
                            len(pictures), 0, 0, 0, 0, 0, WIDTH, HEIGHT)  # fmt: skip
        text = struct.pack("<4s4sIHHIIIIIIII4H", b"txts", b"\0" * 4, 0, 0, 0, 0, 1, 25, 0,
                           1, 0, 0, 0, 0, 0, 0, 0)  # fmt: skip
        bitmap = struct.pack("<IiiHH4sIiiII", 40, WIDTH, HEIGHT, 1, 24, b"MJPG",
                             WIDTH * HEIGHT * 3, 0, 0, 0, 0)  # fmt: skip
        main = struct.pack("<14I", 40_000, 0, 0, 0, len(pictures), 0, 2, 0, WIDTH, HEIGHT, *[0] * 4)
        header = listed(
            b"hdrl",
            riff(b"avih", main)
            + listed(b"strl", riff(b"strh", video) + riff(b"strf", bitmap))
            + listed(b"strl", riff(b"strh", text) + riff(b"strf", b"")),
        )
        path.write_bytes(riff(b"RIFF", b"AVI " + header + movi))

    return make


def riff(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def listed(kind: bytes, body: bytes) -> bytes:
    return riff(b"LIST", kind + body)


def jpegs(count: int) -> list[bytes]:
    """Numbered pictures as JPEG."""
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
    encoder.framerate = 25
    found = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
        frame = frame.reformat(format="yuvj420p")
        frame.pts = number
        found += [bytes(packet) for packet in encoder.encode(frame)]
    return found + [bytes(packet) for packet in encoder.encode(None)]


def two_sizes(path: Path) -> None:
    """M48: the picture changes its size in the middle of the stream, as some cameras' do."""
    small = make_clip(path.with_suffix(".a.mkv"), (numbered(n) for n in range(6)),
                      codec="mjpeg", pixel_format="yuvj420p", options={})  # fmt: skip
    large = make_clip(
        path.with_suffix(".b.mkv"),
        (numbered(n, 2 * WIDTH, 2 * HEIGHT) for n in range(6, 12)),
        codec="mjpeg",
        pixel_format="yuvj420p",
        options={},
    )
    with (
        av.open(str(path), "w", format="matroska") as target,
        av.open(str(small)) as first,
        av.open(str(large)) as second,
    ):
        copy = target.add_stream_from_template(first.streams.video[0])
        for start, source in ((0, first), (6, second)):
            for number, packet in enumerate(source.demux(video=0)):
                if packet.size:
                    packet.pts = packet.dts = (start + number) * 40
                    packet.stream = copy
                    target.mux(packet)
    small.unlink()
    large.unlink()


def variable_rate(path: Path) -> None:
    """Thirty frames per second, of which the camera dropped some."""
    ticks = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 16, 18, 19, 20, 21]
    numbered_clip(
        path,
        len(ticks),
        rate=30,
        ticks=[tick * 3000 for tick in ticks],
        time_base=Fraction(1, 90000),
    )
