"""What pixels come out: colours, orientation, shape, transparency, as the frames mean them."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from preprocessing.errors import MediaError
from preprocessing.media import FittedVideo, fit_video, probe_and_fit_image, probe_video
from preprocessing.report import VideoFacts
from tests.preprocessing.media.made import (
    Picture,
    make_clip,
    number_in,
    numbered,
    numbers_in,
    patch,
    rule,
)

LOSSLESS: dict[str, Any] = {"codec": "ffv1", "options": {}}

# Code points of ITU-T H.273.
BT709, UNTAGGED, BT601, BT2020, PQ, HLG = 1, 2, 6, 9, 16, 18
LIMITED, FULL = 1, 2
WEIGHTS = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), BT2020: (0.2627, 0.0593)}
"""Kr and Kb of each matrix."""


def fitted(path: Path, **values: object) -> tuple[Picture, FittedVideo, VideoFacts]:
    """The first frame of a clip, fitted."""
    clip = probe_video(path, path.name)
    out = path.with_suffix(".npy")
    video = fit_video(clip, clip.whole, rule(num_frames=1, **values), out)
    return np.load(out)[0], video, clip.facts


def fitted_image(path: Path, **values: object) -> Picture:
    out = path.with_suffix(".npy")
    video = probe_and_fit_image(path, path.name, rule(num_frames=1, **values), out)
    assert (video.num_frames, video.frame_rate) == (1, 24)
    return np.load(out)[0]


def yuv_frame(
    size: tuple[int, int], pixel_format: str, codes: tuple[float, float, float]
) -> av.VideoFrame:
    """A frame of one colour, given in 8-bit codes."""
    frame = av.VideoFrame(*size, pixel_format)
    deep = "10" in pixel_format
    for plane, code in zip(frame.planes, codes, strict=False):
        view: Any = np.frombuffer(plane, np.uint16 if deep else np.uint8)
        view[:] = round(code * 4) if deep else round(code)
    return frame


def codes_of(rgb: tuple[int, int, int], matrix: int, range_: int) -> tuple[float, float, float]:
    """8-bit Y, Cb, Cr of a colour (ITU-T H.273, section 8.3)."""
    kr, kb = WEIGHTS[matrix]
    r, g, b = (value / 255 for value in rgb)
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)
    if range_ == FULL:
        return 255 * y, 128 + 255 * cb, 128 + 255 * cr
    return 16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr


def tags(matrix: int, range_: int, primaries: int = 2, transfer: int = 2) -> Any:
    def write(stream: Any) -> None:
        stream.colorspace, stream.color_range = matrix, range_
        stream.color_primaries, stream.color_trc = primaries, transfer

    return write


SD, HD = (320, 240), (1280, 720)
RED = (200, 30, 60)
FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv411p"]


@pytest.mark.parametrize("pixel_format", FORMATS)
@pytest.mark.parametrize("range_", [LIMITED, FULL], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [BT709, BT601, BT2020], ids=["709", "601", "2020"])
def test_colours_by_their_tags(tmp_path: Path, pixel_format: str, range_: int, matrix: int) -> None:
    frame = yuv_frame(SD, pixel_format, codes_of(RED, matrix, range_))
    path = make_clip(
        tmp_path / "clip.mkv",
        [frame],
        pixel_format=pixel_format,
        setup=tags(matrix, range_),
        **LOSSLESS,
    )
    pixels, _, facts = fitted(path)
    assert np.abs(pixels - np.array(RED, float)).max() <= 2
    assert "untagged" not in facts.color


@pytest.mark.parametrize(
    ("size", "assumed"), [(SD, BT601), (HD, BT709), ((720, 1280), BT709)], ids=["sd", "hd", "tall"]
)
def test_untagged_colours_by_their_size(
    tmp_path: Path, size: tuple[int, int], assumed: int
) -> None:
    frame = yuv_frame(size, "yuv420p", codes_of(RED, assumed, LIMITED))
    path = make_clip(tmp_path / "clip.mp4", [frame], options={"qp": "1"})
    pixels, _, facts = fitted(path)
    assert np.abs(pixels - np.array(RED, float)).max() <= 3
    assert "matrix: assumed" in facts.color


@pytest.mark.parametrize(
    ("codec", "pixel_format"),
    [("libx264rgb", "rgb24"), ("ffv1", "gbrp10le"), ("ffv1", "bgr0"), ("ffv1", "gray")],
)
def test_rgb_and_gray(tmp_path: Path, codec: str, pixel_format: str) -> None:
    color = (90, 90, 90) if pixel_format == "gray" else RED
    path = make_clip(
        tmp_path / "clip.mkv",
        [patch(color)],
        codec=codec,
        pixel_format=pixel_format,
        options={"qp": "0"} if codec == "libx264rgb" else {},
    )
    assert np.abs(fitted(path)[0] - np.array(color, float)).max() <= 1


@pytest.mark.parametrize("transfer", [PQ, HLG], ids=["pq", "hlg"])
def test_hdr_is_tone_mapped(tmp_path: Path, transfer: int) -> None:
    """Reference white (203 cd/m²) gets 80 % of SDR's light, the brightest code nearly all."""
    white = {PQ: 0.5807, HLG: 0.75}[transfer]
    bright = []
    for code in (0.0, white, 1.0):
        frame = yuv_frame(SD, "yuv420p10le", (16 + 219 * code, 128, 128))
        path = make_clip(
            tmp_path / "clip.mkv",
            [frame],
            pixel_format="yuv420p10le",
            setup=tags(BT2020, LIMITED, primaries=9, transfer=transfer),
            **LOSSLESS,
        )
        pixels, video, facts = fitted(path)
        assert np.ptp(pixels[0, 0].astype(int)) <= 1, "gray stays gray"
        assert any("HDR" in warning for warning in video.warnings)
        assert {PQ: "PQ", HLG: "HLG"}[transfer] in facts.color
        bright.append(int(pixels[0, 0, 1]))
    assert bright[0] == 0
    assert bright[1] == pytest.approx(255 * 0.8 ** (1 / 2.4), abs=2)
    assert bright[1] < bright[2] <= 255


CORNERS = np.zeros((96, 160, 3), np.uint8)
CORNERS[:48, :80], CORNERS[:48, 80:] = (220, 30, 30), (30, 220, 30)
CORNERS[48:, :80], CORNERS[48:, 80:] = (30, 30, 220), (220, 220, 220)

ONE = 1 << 16
TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[Picture], Picture]]] = {
    "none": ((ONE, 0, 0, ONE), lambda p: p),
    "90 clockwise": ((0, ONE, -ONE, 0), lambda p: np.rot90(p, -1)),
    "180": ((-ONE, 0, 0, -ONE), lambda p: np.rot90(p, 2)),
    "270 clockwise": ((0, -ONE, ONE, 0), lambda p: np.rot90(p, 1)),
    "mirrored": ((-ONE, 0, 0, ONE), lambda p: p[:, ::-1]),
    "upside down": ((ONE, 0, 0, -ONE), lambda p: p[::-1]),
    "transposed": ((0, ONE, ONE, 0), lambda p: p.swapaxes(0, 1)),
}


@pytest.mark.parametrize(("matrix", "upright"), TURNS.values(), ids=TURNS)
def test_rotation_and_mirror(
    tmp_path: Path, matrix: tuple[int, int, int, int], upright: Callable[[Picture], Picture]
) -> None:
    a, b, c, d = matrix
    path = make_clip(
        tmp_path / "clip.mp4",
        [CORNERS],
        setup=lambda stream: stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30)),
    )
    wanted = upright(CORNERS)
    height, width = wanted.shape[:2]
    pixels, _, facts = fitted(path, width=width, height=height)
    assert (facts.width, facts.height) == (width, height)
    assert (facts.coded_width, facts.coded_height) == (160, 96)
    for y in (20, height - 20):
        for x in (20, width - 20):
            assert np.abs(pixels[y, x].astype(int) - wanted[y, x]).max() < 20, (x, y)


def test_crooked_rotation_is_refused(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "clip.mp4", [CORNERS], setup=lambda stream: stream.set_display_rotation(45)
    )
    with pytest.raises(MediaError, match="rotated by"):
        probe_video(path, "clip.mp4")


@pytest.mark.parametrize(
    ("coded", "aspect"),
    [((90, 96), Fraction(16, 9)), ((160, 54), Fraction(9, 16)), ((720, 480), Fraction(10, 9))],
    ids=str,
)
def test_anamorphic_pixels_become_square(
    tmp_path: Path, coded: tuple[int, int], aspect: Fraction
) -> None:
    def squeeze(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = aspect

    path = make_clip(tmp_path / "clip.mp4", [numbered(682, *coded)], setup=squeeze)
    pixels, video, facts = fitted(path)
    assert facts.sample_aspect_ratio == f"{aspect.numerator}:{aspect.denominator}"
    assert (facts.width, facts.height) == (round(coded[0] * aspect), coded[1])
    assert video.scaled_width == 160
    assert number_in(pixels) == 682


def test_anamorphic_and_turned(tmp_path: Path) -> None:
    def both(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(1, 2)
        stream.set_display_matrix((0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30))

    stored = np.rot90(numbered(341), 1).repeat(2, axis=1)
    path = make_clip(tmp_path / "clip.mp4", [stored], setup=both)
    pixels, _, facts = fitted(path)
    assert (facts.width, facts.height) == (160, 96)
    assert number_in(pixels) == 341


def woven(number: int) -> Picture:
    """Two fields of a bar that moves 4 pixels between them, over a number."""
    fields = []
    for time in (2 * number, 2 * number + 1):
        picture = numbered(number).copy()
        left = 8 + 4 * time
        picture[:, left : left + 16] = 250
        fields.append(picture)
    fields[0][1::2] = fields[1][1::2]
    return fields[0]


def combing(picture: Picture) -> float:
    """How much lines differ from their neighbours more than from the lines beyond."""
    luma = picture.astype(float).mean(axis=-1)
    next_line = np.abs(luma[1:-1] - luma[2:]).mean()
    return float(next_line - np.abs(luma[:-2] - luma[2:]).mean())


def test_interlaced_is_made_progressive_frame_for_frame(tmp_path: Path) -> None:
    frames = [woven(number) for number in range(12)]
    path = make_clip(
        tmp_path / "clip.mp4",
        frames,
        options={"crf": "8", "x264-params": "interlaced=1:tff=1"},
    )
    clip = probe_video(path, "clip.mp4")
    assert clip.facts.interlaced
    assert clip.facts.num_frames == 12
    fit_video(clip, clip.whole, rule(num_frames=9), tmp_path / "out.npy")
    pixels = np.load(tmp_path / "out.npy")
    assert combing(frames[4]) > 5
    assert max(combing(picture) for picture in pixels) < 2
    bars = [int(np.argmax(picture[:, :, 0].astype(int).mean(axis=0))) for picture in pixels]
    assert bars == sorted(set(bars)), "time runs forward"


def with_alpha(number: int = 0) -> av.VideoFrame:
    """Left half opaque red, right half transparent green."""
    rgba = np.zeros((96, 160, 4), np.uint8)
    rgba[:, :80] = (200, 30, 60, 255)
    rgba[:, 80:] = (30, 200, 60, 0)
    return av.VideoFrame.from_ndarray(rgba, format="rgba")


@pytest.mark.parametrize(
    ("codec", "pixel_format", "suffix"),
    [
        ("prores_ks", "yuva444p10le", ".mov"),
        ("qtrle", "argb", ".mov"),
        ("ffv1", "yuva420p", ".mkv"),
        ("libvpx-vp9", "yuva420p", ".mkv"),
        ("libvpx", "yuva420p", ".webm"),
    ],
)
def test_transparent_clip_is_on_black(
    tmp_path: Path, codec: str, pixel_format: str, suffix: str
) -> None:
    options = {"auto-alt-ref": "0", "b": "2M"} if codec.startswith("libvpx") else {}
    frames = [with_alpha().reformat(format=pixel_format) for _ in range(3)]
    path = make_clip(
        tmp_path / f"clip{suffix}", frames, codec=codec, pixel_format=pixel_format, options=options
    )
    pixels, _, _ = fitted(path)
    assert np.abs(pixels[10:-10, 10:60] - np.array(RED, float)).max() <= 10
    assert pixels[10:-10, 100:150].max() <= 4
    assert pixels[10:-10, 60:100, 1].max() <= 60, "no green bleeds in from what can't be seen"


def write_image(out: Path, frame: av.VideoFrame, codec: str = "png") -> Path:
    return make_clip(
        out, [frame], codec=codec, pixel_format=frame.format.name, options={}, format="image2pipe"
    )


@pytest.mark.parametrize("pixel_format", ["rgb24", "rgba", "gray", "ya8", "rgb48be", "monob"])
def test_png_of_every_kind(tmp_path: Path, pixel_format: str) -> None:
    frame = av.VideoFrame.from_ndarray(patch((255, 255, 255)), format="rgb24")
    path = write_image(tmp_path / "image.png", frame.reformat(format=pixel_format))
    assert fitted_image(path).min() >= 253


def test_palette_png(tmp_path: Path) -> None:
    frame = av.VideoFrame(160, 96, "pal8")
    palette: Any = np.frombuffer(frame.planes[1], np.uint8).reshape(-1, 4)
    palette[7] = (60, 30, 200, 255)  # BGRA
    indices: Any = np.frombuffer(frame.planes[0], np.uint8)
    indices[:] = 7
    path = write_image(tmp_path / "image.png", frame)
    assert np.abs(fitted_image(path) - np.array(RED, float)).max() <= 1


def test_jpeg_is_full_range_bt601_whatever_its_size(tmp_path: Path) -> None:
    frame = yuv_frame((1920, 1088), "yuvj420p", codes_of(RED, BT601, FULL))
    path = write_image(tmp_path / "image.jpg", frame, "mjpeg")
    assert np.abs(fitted_image(path) - np.array(RED, float)).max() <= 3


def with_exif_orientation(jpeg: bytes, orientation: int) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = b"II*\x00" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    body = b"Exif\x00\x00" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


EXIF: dict[int, Callable[[Picture], Picture]] = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: np.rot90(p, 2),
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", EXIF)
def test_photo_is_turned_as_the_camera_says(tmp_path: Path, orientation: int) -> None:
    frame = av.VideoFrame.from_ndarray(CORNERS, format="rgb24").reformat(format="yuvj444p")
    path = write_image(tmp_path / "image.jpg", frame, "mjpeg")
    path.write_bytes(with_exif_orientation(path.read_bytes(), orientation))
    wanted = EXIF[orientation](CORNERS)
    height, width = wanted.shape[:2]
    pixels = fitted_image(path, width=width, height=height)
    for y in (20, height - 20):
        for x in (20, width - 20):
            assert np.abs(pixels[y, x].astype(int) - wanted[y, x]).max() < 20, (x, y)


@pytest.mark.parametrize("size", [(321, 239), (239, 321), (17, 4001), (8192, 16)], ids=str)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int], pixel_format: str) -> None:
    frame = yuv_frame(size, pixel_format, codes_of(RED, BT601, LIMITED))
    path = make_clip(
        tmp_path / "clip.mkv",
        [frame],
        pixel_format=pixel_format,
        setup=tags(BT601, LIMITED),
        **LOSSLESS,
    )
    pixels, video, facts = fitted(path)
    assert (facts.width, facts.height) == size
    assert video.scaled_width >= 160
    assert video.scaled_height >= 96
    assert np.abs(pixels - np.array(RED, float)).max() <= 2


def test_size_that_changes_midway(tmp_path: Path) -> None:
    """Every frame is fitted by itself; VP8 may change its size at any key frame."""
    parts = []
    path = tmp_path / "clip.webm"
    for start, size in ((0, (160, 96)), (10, (320, 192)), (20, (400, 300))):
        part = tmp_path / f"{start}.webm"
        pictures = [numbered(number, *size) for number in range(start, start + 10)]
        parts.append(make_clip(part, pictures, codec="libvpx", options={"b": "4M"}))
    with av.open(str(path), "w") as target:
        with av.open(str(parts[0])) as source:
            stream = target.add_stream_from_template(source.streams.video[0])
        for index, part in enumerate(parts):
            with av.open(str(part)) as source:
                for packet in source.demux(video=0):
                    if packet.size and packet.pts is not None:
                        packet.pts += index * 400
                        packet.dts = packet.pts
                        packet.stream = stream
                        target.mux(packet)
    clip = probe_video(path, "clip.webm")
    assert clip.facts.num_frames == 30
    fit_video(clip, clip.whole, rule(num_frames=25), tmp_path / "out.npy")
    assert numbers_in(tmp_path / "out.npy") == list(range(25))
