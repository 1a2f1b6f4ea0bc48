"""Where a source lies in a larger canvas: in the middle, and on the latent grid. Arithmetic only.

A token is given or it is not, so what is kept must end where a cell of 32 pixels ends; a source
that ended inside a cell would lose that cell. The source is therefore brought to whole cells: it is
resized to cover them, and what stands over at two of its sides, at most half a cell, is cut.
"""

import math
from collections.abc import Iterator
from fractions import Fraction

from preprocessing.errors import DatasetRuleError
from preprocessing.manifest import Placement
from preprocessing.rules import LATENT_STRIDE_PIXELS

_CELL = LATENT_STRIDE_PIXELS


def place(source: tuple[Fraction, Fraction], canvas: tuple[int, int], scale: float) -> Placement:
    """The rectangle for a source of this shape, at ``scale`` of the largest size that fits.

    Sides are whole cells, or the canvas's own; of the sizes next to the one asked for, the one that
    cuts least. Left and top are on the grid, as near to the middle as that goes.

    >>> place((Fraction(16), Fraction(9)), (1280, 720), 0.75)
    Placement(left=160, top=96, width=960, height=544)
    >>> place((Fraction(4), Fraction(3)), (1280, 720), 1)
    Placement(left=160, top=0, width=960, height=720)

    Raises `DatasetRuleError` where nothing of the canvas would be left to generate.
    """
    fits = min(Fraction(canvas[0]) / source[0], Fraction(canvas[1]) / source[1])
    wanted = [side * fits * Fraction(scale) for side in source]
    if all(round(side) >= whole for side, whole in zip(wanted, canvas, strict=True)):
        raise DatasetRuleError(
            f"At source_scale {scale:g} the source fills the whole canvas of {canvas[0]}x"
            f"{canvas[1]}, so nothing is left to generate. Use a smaller source_scale, or a canvas "
            "of another shape.",
            field="source_scale",
        )
    shape = source[0] / source[1]
    sizes = [
        (width, height)
        for width in _sides(wanted[0], canvas[0])
        for height in _sides(wanted[1], canvas[1])
        if (width, height) != canvas
    ]
    if not sizes:
        raise DatasetRuleError(
            f"The canvas of {canvas[0]}x{canvas[1]} is too small for anything beside the source: "
            f"it is kept in cells of {_CELL} pixels. Use a larger canvas.",
            field="resolution",
        )

    def misfit(size: tuple[int, int]) -> tuple[Fraction, Fraction]:
        return cut_share(shape, size), abs(size[0] * size[1] - wanted[0] * wanted[1])

    width, height = min(sizes, key=misfit)
    return Placement(
        left=_middle(width, canvas[0]), top=_middle(height, canvas[1]), width=width, height=height
    )


def cut_share(shape: Fraction, size: tuple[int, int]) -> Fraction:
    """How much of a source of this aspect ratio is cut to cover ``size``."""
    ratio = Fraction(size[0], size[1]) / shape
    return 1 - min(ratio, 1 / ratio)


def _sides(wanted: Fraction, canvas: int) -> Iterator[int]:
    """Lengths next to ``wanted``: whole cells, or the canvas."""
    if round(wanted) >= canvas:
        yield canvas
        return
    below = int(wanted) // _CELL * _CELL
    if below:
        yield below
    yield min(below + _CELL, canvas)


def _middle(side: int, canvas: int) -> int:
    """Where it begins: the whole cell nearest to the middle, the first of two."""
    beside = canvas - side
    nearest = math.ceil(Fraction(beside, 2 * _CELL) - Fraction(1, 2))
    return min(nearest, beside // _CELL) * _CELL
