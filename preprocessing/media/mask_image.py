"""Still masks: any PNG, JPEG, BMP or WebP as white to regenerate, black to keep."""

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from preprocessing.errors import MediaError
from preprocessing.media.containers import MAX_IMAGE_PIXELS, too_large
from preprocessing.media.geometry import Cover
from preprocessing.names import short
from preprocessing.rules import MASK_IMAGE_EXTENSIONS

FORMATS: Final = ("PNG", "JPEG", "BMP", "WEBP")
"""Pillow's names; nothing else is tried on a foreign file."""

_SUPPORTED: Final = {"supported_formats": list(MASK_IMAGE_EXTENSIONS)}

_HEADS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM")
_HEAD_BYTES: Final = 12

White = npt.NDArray[np.uint8]
"""[H, W], 255 = regenerate, as users paint it."""


def is_image(path: Path) -> bool:
    """Whether the first bytes are those of a kind of image that a mask can be."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return head.startswith(_HEADS) or (head.startswith(b"RIFF") and head[8:] == b"WEBP")


def read_mask_image(path: Path, name: str) -> White:
    """The image upright, as the mean of its colours, transparent parts black (= keep).

    Raises `MediaError`: damaged, animated, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return _white(image, name)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError(
            f"{short(name)} has far more than {MAX_IMAGE_PIXELS // 10**6} million pixels. Send it "
            "in the size of its clip.",
            reason="too_large",
            type="unsupported_image_format",
            ctx={"max_pixels": MAX_IMAGE_PIXELS, **_SUPPORTED},
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise MediaError(
            f"{short(name)} can't be decoded: it is damaged. Save it again as PNG.",
            reason="unreadable",
            type="unsupported_image_format",
            ctx=_SUPPORTED,
        ) from error


def _white(image: Image.Image, name: str) -> White:
    if image.width * image.height > MAX_IMAGE_PIXELS:
        error = too_large(name, image.width, image.height, MAX_IMAGE_PIXELS)
        error.type = "unsupported_image_format"
        error.ctx |= _SUPPORTED
        raise error
    if getattr(image, "is_animated", False):
        raise MediaError(
            f"{short(name)} is an animation. Send a still image, or the mask as a video.",
            reason="not_an_image",
            type="unsupported_image_format",
            ctx=_SUPPORTED,
        )
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        # 16 bits of gray, which Pillow's own conversion would clip to 8.
        gray: White = (np.asarray(upright, np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return gray
    rgba = np.asarray(upright.convert("RGBA"))
    return mean_of(rgba[..., :3], rgba[..., 3])


def mean_of(rgb: npt.NDArray[np.uint8], alpha: npt.NDArray[np.uint8] | None = None) -> White:
    """Gray [H, W] as the plain mean of R, G and B [H, W, 3], as the reference takes it (1.5),
    composited on black by ``alpha`` [H, W]."""
    total = rgb[..., 0].astype(np.uint32)
    total += rgb[..., 1]
    total += rgb[..., 2]
    if alpha is None:
        return ((total + 1) // 3).astype(np.uint8)
    return ((total * alpha + 382) // 765).astype(np.uint8)


def stretched_like(white: White, cover: Cover, width: int, height: int) -> White:
    """Stretch a mask to its clip's scaled frame and cut out what was cut out of the clip.

    [H, W] of any size to [height, width]. Linear and antialiased; the cut is part of the scaling,
    so that it falls between source pixels as the clip's does.
    """
    across, down = white.shape[1] / cover.width, white.shape[0] / cover.height
    box = (
        cover.left * across,
        cover.top * down,
        (cover.left + width) * across,
        (cover.top + height) * down,
    )
    scaled = Image.fromarray(white).resize((width, height), Image.Resampling.BILINEAR, box)
    return np.asarray(scaled)
