"""Where pixels go: resize to cover, centre crop, upright orientation. Pure arithmetic.

The reference resizes the whole frame and then cuts its middle out (`ltx-training.md` section 4,
golden 10). Here the cut comes first, so that only pixels that are kept get scaled; `crop_axis`
finds the whole-pixel cut whose scaling lands on the same sampling points.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

MAX_PHASE_ERROR: Final = 0.01
"""Output pixels that a sampling point may be off. Noise of 20 levels then differs by 57 dB, which
is less than rounding to 8 bits twice does."""

_SEARCH_PX: Final = 96
"""Source pixels by which a cut grows at each end, at first, to get the phase right."""

_BICUBIC_RADIUS: Final = 2
"""Pixels that the bicubic kernel reaches, in units of the coarser grid."""


@dataclass(frozen=True)
class Cover:
    """The frame after resize-to-cover (``width`` x ``height``) and where the crop starts in it."""

    width: int
    height: int
    left: int
    top: int


def cover(width: Fraction, height: Fraction, to_width: int, to_height: int) -> Cover:
    """Resize-to-cover of an upright frame with square pixels; the crop takes the middle.

    One side fits exactly, the other is truncated to whole pixels, the crop starts at delta // 2.
    """
    if width * to_height >= height * to_width:
        scaled_width, scaled_height = int(width * to_height / height), to_height
    else:
        scaled_width, scaled_height = to_width, int(height * to_width / width)
    return centred(scaled_width, scaled_height, to_width, to_height)


def centred(scaled_width: int, scaled_height: int, to_width: int, to_height: int) -> Cover:
    """A scaled frame of which the middle is taken."""
    left, top = (scaled_width - to_width) // 2, (scaled_height - to_height) // 2
    return Cover(scaled_width, scaled_height, left, top)


@dataclass(frozen=True)
class AxisCrop:
    """Along one axis: cut ``length`` source pixels from ``start``, scale them to ``scaled``, and
    keep ``size`` of those from ``trim``."""

    start: int
    length: int
    scaled: int
    trim: int
    size: int


def crop_axis(source: int, scaled: int, left: int, size: int, align: int) -> AxisCrop:
    """The cut equivalent to scaling all ``source`` pixels to ``scaled`` and keeping ``size`` from
    ``left``.

    Cuts start and end at multiples of ``align`` (the chroma grid). Among cuts that contain all
    pixels the kernel touches, the shortest whose sampling points are off by less than
    `MAX_PHASE_ERROR` is taken, else the best.
    """
    if scaled == size:
        return AxisCrop(0, source, scaled, 0, size)
    near, error = _best_cut(source, scaled, left, size, align, _SEARCH_PX)
    if error <= MAX_PHASE_ERROR:
        return near
    return _best_cut(source, scaled, left, size, align, source)[0]


def _best_cut(
    source: int, scaled: int, left: int, size: int, align: int, reach: int
) -> tuple[AxisCrop, float]:
    """The best cut that is at most ``reach`` longer at each end, and its error."""
    ratio = source / scaled
    margin = _BICUBIC_RADIUS * max(1.0, ratio) + 1
    first = max(0, int((left * ratio - margin) // align) * align)
    last = min(source, -int(-((left + size) * ratio + margin) // align) * align)
    starts = np.arange(first, max(-1, first - reach), -align)
    # A frame whose size is no multiple of the grid may still be taken to its end.
    ends = np.unique(np.minimum(np.arange(last, last + reach, align), source))
    start, end = (grid.ravel() for grid in np.meshgrid(starts, ends))
    length = end - start
    cut_scaled = np.maximum(np.rint(length / ratio).astype(np.int64), 1)
    trim = np.rint(left - start / ratio).astype(np.int64)
    fits = (trim >= 0) & (trim + size <= cut_scaled)
    error = np.zeros(length.shape)
    for pixel in (0, size - 1):
        wanted = (left + pixel + 0.5) * ratio
        given = start + (trim + pixel + 0.5) * length / cut_scaled
        error = np.maximum(error, np.abs(given - wanted) / ratio)
    error = np.where(fits, np.maximum(error, MAX_PHASE_ERROR), np.inf)
    best = int(np.lexsort((length, error))[0])
    cut = AxisCrop(
        int(start[best]), int(length[best]), int(cut_scaled[best]), int(trim[best]), size
    )
    return cut, float(error[best])


@dataclass(frozen=True)
class Orientation:
    """How stored frames are turned to be upright: transpose first, then mirror."""

    transposed: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of_matrix(cls, matrix: tuple[int, ...]) -> "Orientation | None":
        """From the nine numbers of a display matrix; None for an angle that is no right one.

        A stored pixel (x, y) is shown at (a x + c y, b x + d y), with the matrix a b u c d v ...
        """
        a, b, c, d = matrix[0], matrix[1], matrix[3], matrix[4]
        one = max(abs(a), abs(b))
        if one == 0:
            return cls()
        a, b, c, d = (round(value / one) for value in (a, b, c, d))
        if a and d and not b and not c:
            return cls(False, mirror_x=a < 0, mirror_y=d < 0)
        if b and c and not a and not d:
            return cls(True, mirror_x=c < 0, mirror_y=b < 0)
        return None

    @classmethod
    def of_degrees(cls, clockwise: int) -> "Orientation | None":
        """From a turn alone; None for an angle that is no right one."""
        return _TURNS.get(clockwise % 360)

    @classmethod
    def of_exif(cls, value: int) -> "Orientation":
        """From a photo's Orientation tag (Exif 2.32, table 4); unknown values mean upright."""
        return _EXIF.get(value, cls())

    @property
    def rotation_degrees(self) -> int:
        """Clockwise turn that makes frames upright; a mirror beside it is not counted."""
        if self.transposed:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn a stored frame [H, W, C] upright: a view, nothing is copied."""
        if self.transposed:
            frame = frame.swapaxes(0, 1)
        return frame[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]


_TURNS: Final = {
    0: Orientation(),
    90: Orientation(True, mirror_x=True),
    180: Orientation(False, mirror_x=True, mirror_y=True),
    270: Orientation(True, mirror_y=True),
}
_EXIF: Final = {
    2: Orientation(mirror_x=True),
    3: _TURNS[180],
    4: Orientation(mirror_y=True),
    5: Orientation(True),
    6: _TURNS[90],
    7: Orientation(True, mirror_x=True, mirror_y=True),
    8: _TURNS[270],
}
