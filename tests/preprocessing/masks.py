"""Masks made in code, and what they should come to, computed without the code under test."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.media import Clip, FittedMask, FittedVideo, fit_mask, fit_video, probe_video
from preprocessing.rules import DatasetRule
from tests.preprocessing.media.made import make_clip

Gray = NDArray[np.uint8]
"""[H, W]"""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in shares of the frame."""


def box(width: int, height: int, at: Box) -> Gray:
    """White in ``at``, black around it; pixels with an edge in them are gray by their share."""
    left, top, right, bottom = at
    across = _covered(width, left * width, right * width)
    down = _covered(height, top * height, bottom * height)
    return (np.outer(down, across) * 255).round().astype(np.uint8)


def _covered(size: int, start: float, end: float) -> NDArray[np.float64]:
    """For each of ``size`` pixels, how much of it lies between ``start`` and ``end``."""
    pixel = np.arange(size)
    return (np.minimum(end, pixel + 1) - np.maximum(start, pixel)).clip(0, 1)


def rgb(gray: Gray) -> NDArray[np.uint8]:
    return np.repeat(gray[..., None], 3, axis=-1)


def write_mask_image(out: Path, gray: Gray) -> Path:
    Image.fromarray(gray).save(out)
    return out


def write_mask_video(out: Path, frames: Iterable[Gray], **how: object) -> Path:
    return make_clip(out, (rgb(frame) for frame in frames), **how)


def flashes(count: int, *white: int, width: int = 160, height: int = 96) -> list[Gray]:
    """Frames of which the left half is white where their number is among ``white``."""
    on, off = box(width, height, (0, 0, 0.4, 1)), np.zeros((height, width), np.uint8)
    return [on if number in white else off for number in range(count)]


def fit(
    clip: Path, mask: Path, rule: DatasetRule, folder: Path
) -> tuple[NDArray[np.bool_], FittedMask, Clip, FittedVideo]:
    """Fit a clip and its mask as a preparation does; the mask's cells first."""
    probed = probe_video(clip, clip.name)
    fitted = fit_video(probed, probed.whole, rule, folder / "frames.npy")
    out = folder / "keep_mask.npy"
    made = fit_mask(mask, mask.name, probed, fitted, out)
    return np.load(out), made, probed, fitted


def expected_cells(
    coverage: Callable[[int, float, float, float, float], float], grid: tuple[int, int, int]
) -> NDArray[np.bool_]:
    """Kept cells [f, h, w] by the words of the rule: ``coverage(frame, left, top, right, bottom)``
    is the share of a pixel rectangle that is white in a frame."""
    kept = np.ones(grid, bool)
    for k, y, x in np.ndindex(grid):
        group = [0] if k == 0 else range(8 * k - 7, 8 * k + 1)
        for frame in group:
            share = coverage(frame, 32 * x, 32 * y, 32 * x + 32, 32 * y + 32)
            assert abs(share - 0.5) > 0.04, "a tie would test the codec"
            kept[k, y, x] &= share < 0.5
    return kept


def overlap(a: Box, b: Box) -> float:
    """The share of ``b`` that ``a`` covers."""
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return across * down / ((b[2] - b[0]) * (b[3] - b[1]))
