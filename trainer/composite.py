"""The user's own pixels and sound laid over what was given: the VAE need not degrade them.

The seam lies inside the given region, so that no generated pixel is covered: the source is whole
from a few pixels (or frames) inside its border on, and fades into the decoded clip towards it.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from preprocessing.latent_mask import latent_frame_of
from preprocessing.manifest import Placement
from preprocessing.rules import LATENT_STRIDE_PIXELS

SEAM_FRAMES: Final = 4
"""Frames over which a given stretch of time fades into the generated one."""

SEAM_SAMPLES: Final = 960
"""Of sound, at 48 kHz: 20 ms, too short to be heard and long enough not to click."""

_CELL: Final = LATENT_STRIDE_PIXELS

Weights = NDArray[np.float32]
"""[H, W]: 1 is the source, 0 what was generated."""


def seam_weights(keep: NDArray[np.bool_], seam: int) -> Weights:
    """From cells [h, w], true = given, to pixels [32 h, 32 w].

    0 where a cell is generated. In a given cell, 1 from ``seam`` pixels on from every generated
    cell, less in between: pixel d from the border has d / (seam + 1). The canvas's edge is no
    border. ``seam`` is at most 32, so that only neighbouring cells matter.
    """
    if not 0 <= seam <= _CELL:
        raise ValueError(f"a seam is 0 to {_CELL} pixels wide, not {seam}")
    rows, columns = keep.shape
    ramp = np.minimum(np.arange(1, _CELL + 1) / (seam + 1), 1).astype(np.float32)
    near = {-1: ramp, 0: np.zeros(_CELL, np.float32), 1: ramp[::-1]}
    weights = np.ones((rows, _CELL, columns, _CELL), np.float32)
    around = np.pad(~keep, 1)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            generated = around[1 + down : 1 + down + rows, 1 + across : 1 + across + columns]
            # The distance to a cell beside is along one axis, to one at a corner the larger of two.
            cell = np.maximum(near[down][:, None], near[across])
            limit = np.where(generated[:, None, :, None], cell[None, :, None, :], np.float32(1))
            np.minimum(weights, limit, out=weights)
    return weights.reshape(rows * _CELL, columns * _CELL)


@dataclass(frozen=True)
class Stretch:
    """Where the source's frames lie in the clip: frame ``start`` of it is the source's first."""

    start: int
    num_frames: int
    fades_in: bool = False
    """Generated frames come before."""
    fades_out: bool = False

    def weight(self, frame: int) -> float:
        """Of the clip's frame; 0 outside."""
        at = frame - self.start
        if not 0 <= at < self.num_frames:
            return 0.0
        weight = 1.0
        if self.fades_in:
            weight = min(weight, (at + 1) / (SEAM_FRAMES + 1))
        if self.fades_out:
            weight = min(weight, (self.num_frames - at) / (SEAM_FRAMES + 1))
        return weight


class Overlay:
    """Lays a source's frames over decoded ones."""

    def __init__(
        self,
        source: NDArray[np.uint8],
        placement: Placement,
        keep: NDArray[np.bool_],
        stretch: Stretch,
        seam: int,
    ) -> None:
        """``source`` [F, h, w, 3] lies at ``placement``; ``keep`` [f, rows, columns] says what is
        given of the clip's latent frames."""
        self._source = source
        self._place = (
            slice(placement.top, placement.top + placement.height),
            slice(placement.left, placement.left + placement.width),
        )
        self._keep = keep
        self._stretch = stretch
        self._seam = seam
        self._weights: tuple[NDArray[np.bool_], Weights] | None = None

    def apply(self, frames: NDArray[np.uint8], first: int) -> None:
        """Change decoded frames [n, H, W, 3], the first of which is the clip's ``first``, in
        place."""
        for frame, picture in enumerate(frames, start=first):
            whole = self._stretch.weight(frame)
            if whole == 0.0:
                continue
            shown = picture[self._place]
            weights = self._weights_of(self._keep[latent_frame_of(frame)])
            weights = weights[: shown.shape[0], : shown.shape[1], None] * np.float32(whole)
            own = self._source[frame - self._stretch.start][: shown.shape[0], : shown.shape[1]]
            mixed = shown + weights * (own.astype(np.float32) - shown)
            np.rint(mixed, out=mixed)
            shown[...] = mixed

    def _weights_of(self, keep: NDArray[np.bool_]) -> Weights:
        """Kept from frame to frame: they seldom change."""
        if self._weights is None or not np.array_equal(self._weights[0], keep):
            self._weights = keep, seam_weights(keep, self._seam)[self._place]
        return self._weights[1]


def lay_sound(
    sound: NDArray[np.float32], own: NDArray[np.float32], *, at_end: bool
) -> NDArray[np.float32]:
    """``own`` [2, n] in place of the beginning or the end of ``sound`` [2, S], with a short fade at
    its inner end."""
    count = min(own.shape[1], sound.shape[1])
    fade = np.minimum(np.arange(1, count + 1, dtype=np.float32) / (SEAM_SAMPLES + 1), 1)
    laid = sound.copy()
    if at_end:
        part, own = laid[:, -count:], own[:, -count:]
    else:
        part, own, fade = laid[:, :count], own[:, :count], fade[::-1]
    part += fade * (own - part)
    return laid
