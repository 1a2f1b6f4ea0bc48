"""From pixels to latent cells: which tokens of a clip are given (`ltx-training.md` 1.5).

The reference groups frames {0..7}, {8..15}, ... although the VAE's are {0}, {1..8}, ..., and keeps
a token if any of its frames is kept, so that an edit seen in a few frames vanishes. Here the groups
are the VAE's, and a token is regenerated if any of its frames is.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS

_WHITE = 255

Pixels = npt.NDArray[np.uint8]
"""[H, W], 255 = keep, 0 = regenerate: already turned around from the user's white = regenerate."""
Cells = npt.NDArray[np.bool_]
"""[h, w] or [f, h, w], true = keep."""


def latent_frame_of(frame: int) -> int:
    """The latent frame that holds pixel frame ``frame``.

    >>> [latent_frame_of(frame) for frame in (0, 1, 8, 9, 16, 17)]
    [0, 1, 1, 2, 2, 3]
    """
    return -(-frame // LATENT_STRIDE_FRAMES)


def kept_cells(keep: Pixels) -> Cells:
    """The 32x32 cells [h, w] of one frame of which more than half is kept; a tie is regenerated.

    Integers throughout, so that ties are exact. Raises `ValueError` for another type or a size that
    is no multiple of 32.
    """
    cell = LATENT_STRIDE_PIXELS
    if keep.dtype != np.uint8 or keep.ndim != 2 or any(side % cell for side in keep.shape):
        raise ValueError(f"a mask must be uint8 [32 h, 32 w], not {keep.dtype} {keep.shape}")
    height, width = keep.shape
    blocks = keep.reshape(height // cell, cell, width // cell, cell)
    kept: Cells = blocks.sum(axis=(1, 3), dtype=np.uint32) * 2 > _WHITE * cell * cell
    return kept


class LatentMask:
    """Takes the frames of a mask one by one, in any order; never holds more than the cells."""

    def __init__(self, num_frames: int, height: int, width: int, *, pad: bool = False) -> None:
        """``num_frames`` is 8k + 1, the sides are multiples of 32, all in pixels; with ``pad``, any
        size, and the mask's edge goes on to the next multiple."""
        if num_frames % LATENT_STRIDE_FRAMES != 1:
            raise ValueError(f"a mask must have 8k + 1 frames, not {num_frames}")
        cell = LATENT_STRIDE_PIXELS
        self._pad = [(0, -side % cell if pad else 0) for side in (height, width)]
        shape = latent_frame_of(num_frames - 1) + 1, -(-height // cell), -(-width // cell)
        self.kept: Cells = np.ones(shape, dtype=np.bool_)
        """[f, h, w]; final once every frame was put."""

    def put(self, keep: Pixels, frames: Iterable[int]) -> None:
        """Say that pixel frames ``frames`` have the mask ``keep`` [H, W]."""
        cells = kept_cells(np.pad(keep, self._pad, mode="edge"))
        for frame in frames:
            self.kept[latent_frame_of(frame)] &= cells


def latent_keep_mask(keep: Pixels) -> Cells:
    """Reduce a whole mask, uint8 [F, H, W] with 255 = keep, to [f, h, w], true = keep.

    f = (F - 1) / 8 + 1, h = H / 32, w = W / 32. Raises `ValueError` for sizes that don't divide.
    """
    if keep.ndim != 3:
        raise ValueError(f"a mask must be [F, H, W], not {keep.shape}")
    mask = LatentMask(*keep.shape)
    for frame, pixels in enumerate(keep):
        mask.put(pixels, [frame])
    return mask.kept
