"""The matrix from luma and chroma to RGB, against the formulas of ITU-T H.273 in float64."""

import numpy as np
import pytest

from preprocessing.media.yuv import YuvToRgb, rgb_matrix

KR_KB = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", sorted(KR_KB))
def test_every_value_is_within_rounding(matrix: int, full_range: bool) -> None:
    y, cb, cr = np.random.default_rng(0).integers(0, 256, (3, 201, 333)).astype(np.uint8)
    got = YuvToRgb(333, 201).convert([y, cb, cr], rgb_matrix(matrix, full_range=full_range))
    red, blue = KR_KB[matrix]
    luma = y / 255 if full_range else (y - 16.0) / 219
    pb, pr = ((c - 128.0) / (255 if full_range else 224) for c in (cb, cr))
    r, b = luma + 2 * (1 - red) * pr, luma + 2 * (1 - blue) * pb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    want = (np.stack([r, g, b], axis=-1) * 255).clip(0, 255)
    assert np.abs(got - want).max() < 0.8
    assert abs((got - want).mean()) < 0.1


def test_gray_stays_gray_from_black_to_white() -> None:
    y = np.arange(16, 236, dtype=np.uint8)[None]
    gray = np.full_like(y, 128)
    for matrix in KR_KB:
        got = YuvToRgb(220, 1).convert([y, gray, gray], rgb_matrix(matrix, full_range=False))
        assert (got == got[..., :1]).all()
        assert (got[0, 0, 0], got[0, -1, 0]) == (0, 255)
