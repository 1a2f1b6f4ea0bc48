"""Files that are not what their name says: refused by name, and never followed anywhere."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.errors import MediaError
from preprocessing.media import fit_video, probe_and_fit_image, probe_video
from tests.preprocessing.media.made import make_clip, numbered_clip, patch, rule, tone

HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{target}\n#EXT-X-ENDLIST\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><image href="{target}"/></svg>'
MPD = '<?xml version="1.0"?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>'

TEXTS = {
    "hls": (HLS, "playlist"),
    "ffconcat": ("ffconcat version 1.0\nfile {target}\n", "concat script"),
    "svg": (SVG, "XML"),
    "dash": (MPD, "XML"),
    "sdp": ("v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n", "text"),
    "pls": ("[playlist]\nFile1={target}\n", "text"),
    "lrc": ("[00:01.00]la la la\n", "text"),
    "plain": ("hello", "text"),
}
BYTES = {
    "empty": (b"", "empty"),
    "zeros": (bytes(100_000), "zeros"),
    "elf": (b"\x7fELF" + bytes(200), "program"),
    "gif": (b"GIF89a" + bytes(100), "GIF"),
    "webp": (b"RIFF\x00\x00\x00\x00WEBPVP8X" + bytes(50), "WebP"),
    "heic": (b"\x00\x00\x00\x18ftypheic" + bytes(50), "HEIC"),
    "noise": (b"\x00\x03" + bytes(range(256)), "something else"),
}
CASES = {name: (text.encode(), word) for name, (text, word) in TEXTS.items()} | BYTES


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
@pytest.mark.parametrize(("content", "word"), CASES.values(), ids=CASES)
def test_not_a_video(tmp_path: Path, content: bytes, word: str, suffix: str) -> None:
    secret = numbered_clip(tmp_path / "secret.mp4", 2)
    path = tmp_path / f"0001{suffix}"
    path.write_bytes(content.replace(b"{target}", str(secret).encode()))
    with pytest.raises(MediaError, match=word) as caught:
        probe_video(path, f"clips/nice{suffix}")
    assert caught.value.reason == "not_a_video"
    assert f"clips/nice{suffix}" in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(("content", "word"), CASES.values(), ids=CASES)
def test_not_an_image(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "0001.png"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=word) as caught:
        probe_and_fit_image(path, "nice.png", rule(num_frames=1), tmp_path / "out.npy")
    assert caught.value.type == "unsupported_image_format"


def sound_only(folder: Path) -> Path:
    path = folder / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(tone(0.02, 440)[:, :960], format="fltp")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cover_art_only(folder: Path) -> Path:
    """A sound file with a picture of its sleeve, which FFmpeg lists as a video stream."""
    path = folder / "clip.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=48_000, layout="stereo")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(patch((9, 9, 9), 96, 64), format="rgb24")
        container.mux(cover.encode(picture.reformat(format="yuvj420p")))
        container.mux(cover.encode())
        frame = av.AudioFrame.from_ndarray(tone(0.02, 440)[:, :960], format="fltp")
        frame.sample_rate = 48_000
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


@pytest.mark.parametrize("make", [sound_only, cover_art_only])
def test_no_video_in_it(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(MediaError) as caught:
        probe_video(make(tmp_path), "clip.mp4")
    assert caught.value.reason == "no_video"


def without_index(path: Path) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    return path


def test_mp4_without_its_index(tmp_path: Path) -> None:
    path = without_index(numbered_clip(tmp_path / "clip.mp4", 9))
    with pytest.raises(MediaError, match=r"nice\.mp4 can't be decoded"):
        probe_video(path, "nice.mp4")


def test_picture_above_the_cap_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "clip.mp4",
        [patch((0, 0, 0), 8192, 4608)],
        options={"preset": "ultrafast"},
    )
    with pytest.raises(MediaError, match="8192x4608") as caught:
        probe_video(path, "huge.mp4")
    assert caught.value.reason == "too_large"


def test_size_in_the_container_may_lie(tmp_path: Path) -> None:
    """An avc1 box that claims 65535x65535 around a small stream (`reliability.md` M16)."""
    path = numbered_clip(tmp_path / "clip.mp4", 9)
    data = bytearray(path.read_bytes())
    at = data.index(b"avc1", data.index(b"stsd")) + 4 + 24
    assert struct.unpack(">HH", data[at : at + 4]) == (160, 96)
    data[at : at + 4] = struct.pack(">HH", 65535, 65535)
    path.write_bytes(data)
    facts = probe_video(path, "clip.mp4").facts
    assert (facts.coded_width, facts.coded_height, facts.num_frames) == (160, 96, 9)


def stts_of(data: bytearray) -> int:
    return data.index(b"stts") + 8


def test_promised_frames_that_are_not_there(tmp_path: Path) -> None:
    """A time table for 2^31 - 1 frames in a file of 20 (`reliability.md` M18)."""
    path = numbered_clip(tmp_path / "clip.mp4", 20)
    data = bytearray(path.read_bytes())
    at = stts_of(data)
    data[at + 4 : at + 8] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(data)
    assert probe_video(path, "clip.mp4").facts.num_frames == 20


def test_header_that_claims_a_century(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 20)
    data = bytearray(path.read_bytes())
    at = data.index(b"mvhd") + 4 + 16
    data[at : at + 4] = struct.pack(">I", 2**32 - 2)
    path.write_bytes(data)
    assert probe_video(path, "clip.mp4").facts.duration_s == pytest.approx(20 / 25)


@pytest.mark.parametrize(("width", "height"), [(2, 2), (320, 8)])
def test_too_small(tmp_path: Path, width: int, height: int) -> None:
    path = make_clip(
        tmp_path / "clip.mkv",
        [patch((0, 0, 0), width, height)] * 3,
        codec="ffv1",
        options={},
    )
    with pytest.raises(MediaError, match=f"only {width}x{height}"):
        probe_video(path, "clip.mkv")


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes(min((width // 8 + 1) * height, 2**20)))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (2**31 - 1, 2), (16_384, 16_384)])
def test_giant_png(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(png_header(width, height))
    with pytest.raises(MediaError, match=r"huge\.png"):
        probe_and_fit_image(path, "huge.png", rule(num_frames=1), tmp_path / "out.npy")


def test_animated_png(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "image.png",
        [patch((9, 9, 9)), patch((99, 9, 9))],
        codec="apng",
        pixel_format="rgb24",
        format="apng",
        options={},
    )
    with pytest.raises(MediaError, match="animated PNG"):
        probe_and_fit_image(path, "image.png", rule(num_frames=1), tmp_path / "out.npy")


def test_an_image_called_video_and_the_reverse(tmp_path: Path) -> None:
    still = make_clip(
        tmp_path / "a.png",
        [patch((1, 2, 3))],
        codec="png",
        pixel_format="rgb24",
        options={},
        format="image2pipe",
    )
    with pytest.raises(MediaError, match="still image"):
        probe_video(still, "a.mp4")
    clip = numbered_clip(tmp_path / "b.mp4", 2)
    with pytest.raises(MediaError, match="a video"):
        probe_and_fit_image(clip, "b.png", rule(num_frames=1), tmp_path / "out.npy")


def test_small_frames_by_the_thousand_stop_after_what_is_needed(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "clip.mkv",
        (patch((0, 0, 0), 16, 16) for _ in range(5_000)),
        rate=240,
        options={"preset": "ultrafast", "g": "1000"},
    )
    clip = probe_video(path, "clip.mkv")
    assert clip.facts.num_frames == 5_000
    fit_video(clip, clip.whole, rule(width=32, height=32), tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (9, 32, 32, 3)
