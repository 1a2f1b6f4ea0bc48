"""Masks lie where their clip shows the same thing: size, shape, crop, rotation, polarity."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import MediaError
from preprocessing.media.containers import open_video
from preprocessing.media.decode import decoded, video_stream
from preprocessing.media.geometry import Cover
from preprocessing.media.graph import FrameFitter
from preprocessing.media.mask_image import mean_of, read_mask_image, stretched_like
from tests.preprocessing.masks import (
    Box,
    box,
    expected_cells,
    fit,
    overlap,
    rgb,
    write_mask_image,
    write_mask_video,
)
from tests.preprocessing.media.made import make_clip, numbered_clip, rule

ONE = 1 << 16
MARK: Box = (0.38, 0.3, 0.66, 0.8)


def test_a_moving_box_lands_on_exactly_its_cells(tmp_path: Path) -> None:
    def place(frame: int) -> Box:
        return (6 + 4 * frame, 15 + frame, 6 + 4 * frame + 44, 15 + frame + 49)

    frames = []
    for number in range(25):
        left, top, right, bottom = place(number)
        gray = np.zeros((96, 160), np.uint8)
        gray[int(top) : int(bottom), int(left) : int(right)] = 255
        frames.append(gray)
    clip = numbered_clip(tmp_path / "clip.mp4", 25)
    mask = write_mask_video(tmp_path / "clip_mask.mp4", frames)
    kept, made, *_ = fit(clip, mask, rule(num_frames=25), tmp_path)
    expected = expected_cells(lambda i, *cell: overlap(place(i), cell), (4, 3, 5))
    assert kept.dtype == np.bool_
    assert np.array_equal(kept, expected)
    assert made.share == pytest.approx(1 - expected.mean())
    assert 0 < made.share < 1


SHAPES: dict[str, dict[str, Any]] = {
    "as its clip": {"clip": (320, 180), "mask": (320, 180)},
    "wide clip, square mask": {"clip": (320, 180), "mask": (200, 200)},
    "wide clip, small odd mask": {"clip": (320, 180), "mask": (98, 62)},
    "tall clip, wide mask": {"clip": (120, 200), "mask": (256, 144)},
    "tall bucket": {"clip": (320, 180), "mask": (160, 90), "bucket": (96, 128)},
    "narrow pixels": {"clip": (160, 180), "mask": (320, 180), "pixel_aspect": Fraction(2)},
    "turned clip": {"clip": (320, 180), "mask": (320, 180), "turned": True},
    "turned tall clip, other mask": {"clip": (120, 200), "mask": (144, 256), "turned": True},
}


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("case", SHAPES)
def test_the_mask_follows_its_clip_to_the_pixel(case: str, kind: str, tmp_path: Path) -> None:
    """The clip shows a bright box on dark ground exactly where the mask is white."""
    shape = SHAPES[case]
    width, height = shape.get("bucket", (128, 96))
    picture = rgb(box(*shape["clip"], MARK))
    clip = make_clip(tmp_path / "clip.mp4", [_stored(picture, shape)] * 9, setup=_setup(shape))
    white = box(*shape["mask"], MARK)
    if kind == "image":
        mask = write_mask_image(tmp_path / "clip_mask.png", white)
    else:
        mask = write_mask_video(tmp_path / "clip_mask.mp4", [white] * 9)
    kept, _, _, fitted = fit(clip, mask, rule(width=width, height=height), tmp_path)
    shown = np.load(tmp_path / "frames.npy")[4].mean(axis=2)
    placed = _placed(mask, kind, fitted.cover, width, height)
    assert _edges(placed) == pytest.approx(_edges(shown), abs=0.4)
    shares = shown.reshape(height // 32, 32, width // 32, 32).mean(axis=(1, 3)) / 255
    clear = np.abs(shares - 0.5) > 0.06
    assert clear.sum() >= 4
    assert (kept == (shares < 0.5))[:, clear].all()


def _stored(picture: NDArray[np.uint8], shape: dict[str, Any]) -> NDArray[np.uint8]:
    """As a phone that is held sideways stores it: to be shown a quarter turn clockwise."""
    return np.ascontiguousarray(np.rot90(picture)) if shape.get("turned") else picture


def _setup(shape: dict[str, Any]) -> Any:
    def setup(stream: Any) -> None:
        if shape.get("turned"):
            stream.set_display_matrix((0, ONE, 0, -ONE, 0, 0, 0, 0, 1 << 30))
        stream.codec_context.sample_aspect_ratio = shape.get("pixel_aspect", Fraction(1))

    return setup


def _placed(mask: Path, kind: str, fit: Cover, width: int, height: int) -> NDArray[np.float64]:
    """The mask's pixels before they are reduced to cells."""
    if kind == "image":
        white = read_mask_image(mask, mask.name)
        return stretched_like(white, fit, width, height).astype(float)
    with open_video(mask, mask.name) as (container, _):
        frame = next(decoded(container, video_stream(container, mask.name), mask.name))
        fitter = FrameFitter(width, height, lambda: None, mask.name, cover=fit)
        return mean_of(fitter.fit(frame)).astype(float)


def _edges(gray: NDArray[np.float64]) -> list[float]:
    """Where a bright box begins and ends, to parts of a pixel: top, bottom, left, right."""
    edges = []
    for axis in (1, 0):
        profile = gray.mean(axis=axis)
        profile = (profile - profile.min()) / (profile.max() - profile.min())
        peak = int(profile.argmax())
        edges += [peak + 1 - profile[: peak + 1].sum(), peak + profile[peak:].sum()]
    return edges


def test_a_mask_is_cropped_like_its_clip_not_like_itself(tmp_path: Path) -> None:
    """A square mask needs no crop for a square bucket; its wide clip loses both sides."""
    clip = numbered_clip(tmp_path / "clip.mp4", 9)
    left_sixth = box(96, 96, (0, 0, 1 / 6, 1))
    mask = write_mask_image(tmp_path / "m.png", left_sixth)
    with pytest.raises(MediaError, match="regenerates nothing"):
        fit(clip, mask, rule(width=96, height=96), tmp_path)
    left_half = write_mask_image(tmp_path / "n.png", box(96, 96, (0, 0, 0.5, 1)))
    kept, made, *_ = fit(clip, left_half, rule(width=96, height=96), tmp_path)
    assert kept[0].tolist() == [[False, False, True]] * 3, "half of the middle cell is a tie"
    assert made.warnings == (
        "n.png has another shape (96x96) than its clip (160x96) and was stretched to it",
    )


# Images of all kinds: the left half white.


def _left(mode: str) -> Image.Image:
    gray = Image.fromarray(box(160, 96, (0, 0, 0.4, 1)))
    if mode == "I;16":
        return Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    if mode == "dark I;16":
        return Image.fromarray(np.asarray(gray).astype(np.uint16) // 255 * 255)
    if mode == "white, alpha":
        image = Image.new("RGBA", gray.size, "white")
        image.putalpha(gray)
        return image
    if mode == "hidden white":
        image = Image.merge("RGBA", [gray, gray, gray, Image.new("L", gray.size, 0)])
        return image
    if mode == "red":
        return Image.merge("RGB", [gray, *[Image.new("L", gray.size, 0)] * 2])
    if mode == "yellow":
        return Image.merge("RGB", [gray, gray, Image.new("L", gray.size, 0)])
    if mode == "P transparent":
        image = gray.convert("P")
        image.info["transparency"] = 0
        return image
    return gray.convert(mode)


IMAGES = {
    "gray png": ("L", ".png", True),
    "one bit png": ("1", ".png", True),
    "palette png": ("P", ".png", True),
    "palette with transparency": ("P transparent", ".png", True),
    "16 bit png": ("I;16", ".png", True),
    "16 bit png, nearly black": ("dark I;16", ".png", False),
    "white under an alpha mask": ("white, alpha", ".png", True),
    "white that is transparent is black": ("hidden white", ".png", False),
    "a third of white": ("red", ".png", False),
    "two thirds of white": ("yellow", ".png", True),
    "jpg": ("RGB", ".jpg", True),
    "cmyk jpeg": ("CMYK", ".jpeg", True),
    "bmp": ("RGB", ".bmp", True),
    "webp": ("RGB", ".webp", True),
    "webp with alpha": ("white, alpha", ".webp", True),
    "jpeg called png": ("RGB", ".jpg.png", True),
}


@pytest.mark.parametrize("case", IMAGES)
def test_white_is_white_in_every_kind_of_image(case: str, tmp_path: Path) -> None:
    mode, extension, works = IMAGES[case]
    mask = tmp_path / f"clip_mask{extension}"
    image = _left(mode)
    image.save(mask, format="JPEG" if extension == ".jpg.png" else None)
    clip = numbered_clip(tmp_path / "clip.mp4", 9)
    if not works:
        with pytest.raises(MediaError, match="regenerates nothing"):
            fit(clip, mask, rule(), tmp_path)
        return
    kept, made, *_ = fit(clip, mask, rule(), tmp_path)
    assert kept[0].tolist() == [[False, False, True, True, True]] * 3
    assert (kept == kept[0]).all()
    assert "image of 160x96: 40.0 % of the cells regenerated" in made.description


def test_a_photographed_mask_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6  # Orientation: shown a quarter turn clockwise.
    mask = tmp_path / "m.jpg"
    upright = Image.fromarray(box(160, 96, (0, 0, 0.4, 1)))
    upright.transpose(Image.Transpose.ROTATE_90).save(mask, exif=exif)
    kept, *_ = fit(numbered_clip(tmp_path / "clip.mp4", 9), mask, rule(), tmp_path)
    assert kept[0].tolist() == [[False, False, True, True, True]] * 3


def test_a_video_mask_in_full_range_and_with_alpha(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.mp4", 9)
    white = [box(160, 96, (0, 0, 0.4, 1))] * 9
    full = write_mask_video(tmp_path / "full.mp4", white, pixel_format="yuvj420p")
    kept, *_ = fit(clip, full, rule(), tmp_path)
    assert kept[0].tolist() == [[False, False, True, True, True]] * 3
    cutout = [np.dstack([rgb(np.full_like(gray, 255)), gray]) for gray in white]
    alpha = make_clip(
        tmp_path / "alpha.mov",
        (_rgba(picture) for picture in cutout),
        codec="prores_ks",
        pixel_format="yuva444p10le",
        options={"profile": "4444"},
    )
    assert np.array_equal(fit(clip, alpha, rule(), tmp_path)[0], kept)


def _rgba(picture: NDArray[np.uint8]) -> Any:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgba")
    return frame.reformat(format="yuva444p10le")
