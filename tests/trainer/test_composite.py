"""The seam: where it lies, how it runs, and what it leaves alone."""

import numpy as np
import pytest

from preprocessing.manifest import Placement
from trainer.composite import SEAM_SAMPLES, Overlay, Stretch, lay_sound, seam_weights


def distance_to_generated(keep: np.ndarray) -> np.ndarray:
    """Pixels (the larger of both axes) from each pixel to the nearest of a generated cell."""
    pixels = keep.repeat(32, axis=0).repeat(32, axis=1)
    ys, xs = np.nonzero(~pixels)
    rows, columns = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    far = np.full(pixels.shape, 10_000)
    for y, x in zip(ys, xs, strict=True):
        far = np.minimum(far, np.maximum(abs(rows - y), abs(columns - x)))
    return far


@pytest.mark.parametrize("seam", [0, 5, 16, 32])
def test_the_seam_is_a_ramp_inside_what_is_given(seam: int) -> None:
    """By the definition, pixel by pixel; the canvas's edge is no border."""
    keep = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [1, 0, 1, 1]], bool)
    expected = np.minimum(distance_to_generated(keep) / (seam + 1), 1)
    np.testing.assert_allclose(seam_weights(keep, seam), expected, atol=1e-6)


def test_all_or_nothing() -> None:
    assert (seam_weights(np.ones((2, 2), bool), 16) == 1).all()
    assert (seam_weights(np.zeros((2, 2), bool), 16) == 0).all()
    with pytest.raises(ValueError, match="0 to 32"):
        seam_weights(np.ones((2, 2), bool), 33)


def test_a_placed_source_is_laid_over_its_own_time() -> None:
    """Frames of a piece that begins at 3; the source lies at (32, 64) from frame 4 to 7."""
    source = np.full((4, 32, 64, 3), 200, np.uint8)
    source[:, :, :, 1] += np.arange(4, dtype=np.uint8)[:, None, None]
    keep = np.zeros((3, 4, 4), bool)
    keep[:, 2, 1:3] = True
    place = Placement(left=32, top=64, width=64, height=32)
    overlay = Overlay(source, place, keep, Stretch(4, 4), seam=0)
    frames = np.full((7, 120, 128, 3), 10, np.uint8)
    overlay.apply(frames, first=3)
    for index, frame in enumerate(frames, start=3):
        inside = frame[64:96, 32:96]
        if 4 <= index < 8:
            assert (inside == [200, 200 + index - 4, 200]).all()
            frame[64:96, 32:96] = 10
        assert (frame == 10).all()


def test_a_stretch_fades_at_its_inner_end() -> None:
    before, after = Stretch(0, 9, fades_out=True), Stretch(17, 8, fades_in=True)
    assert [before.weight(f) for f in (0, 4, 5, 8, 9)] == [1, 1, 0.8, 0.2, 0]
    assert [after.weight(f) for f in (16, 17, 20, 21, 24, 25)] == [0, 0.2, 0.8, 1, 1, 0]


@pytest.mark.parametrize("at_end", [False, True])
def test_own_sound_fades_at_its_inner_end(at_end: bool) -> None:
    made, own = np.zeros((2, 5000), np.float32), np.ones((2, 2000), np.float32)
    laid = lay_sound(made, own, at_end=at_end)
    ahead = laid[0] if not at_end else laid[0, ::-1]
    assert (ahead[: 2000 - SEAM_SAMPLES] == 1).all()
    assert (np.diff(ahead[2000 - SEAM_SAMPLES - 1 : 2001]) < 0).all()
    assert (ahead[2000:] == 0).all()
    assert (made == 0).all()
