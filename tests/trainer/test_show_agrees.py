"""What `preprocessing.show` draws as given is what a training is given: two libraries that may not
import each other compute the same cells."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest

from preprocessing.show import Rectangle, UnusableKeep, Window, given_cells
from trainer.conditions import keep_masks, window_of
from trainer.errors import ConditionError
from trainer.latents import VideoGeometry
from trainer.spec import Condition, KeepRectangle, Prefix, Suffix

SIZES = [(32, 32), (64, 96), (160, 96), (96, 224), (768, 448)]
"""Width and height in pixels."""
EDGES = [0, 1, 31, 32, 33, 63, 64, 90, 95, 96, 127, 128, 159, 160, 224, 447, 448, 767, 768]


def trained(condition: Condition, num_frames: int, width: int, height: int) -> np.ndarray | None:
    """[f, h, w], true = given; None where the training refuses."""
    geometry = VideoGeometry(num_frames, height, width, Fraction(24))
    try:
        masks = keep_masks([condition], geometry, num_audio_tokens=None)
    except ConditionError:
        return None
    grid = (geometry.num_latent_frames, geometry.latent_height, geometry.latent_width)
    return masks.video.view(grid).numpy()


def shown(keep: Rectangle | Window, num_frames: int, width: int, height: int) -> np.ndarray | None:
    try:
        return given_cells(keep, num_frames, width, height)
    except UnusableKeep:
        return None


def same(ours: np.ndarray | None, theirs: np.ndarray | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return np.array_equal(ours, theirs)


def spans(size: int) -> list[tuple[int, int]]:
    """All pairs of edges within ``size`` pixels."""
    edges = [edge for edge in EDGES if edge <= size]
    return [(start, end) for start, end in product(edges, edges) if start < end]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_rectangles(width: int, height: int) -> None:
    outcomes = set()
    # Every span across with some of those down, and the other way round.
    pairs = {*product(spans(width), spans(height)[::7]), *product(spans(width)[::7], spans(height))}
    for (left, right), (top, bottom) in pairs:
        rectangle = Rectangle(left, top, right, bottom)
        condition = KeepRectangle(
            left=left,
            top=top,
            right=right,
            bottom=bottom,
            frame_width=width,
            frame_height=height,
        )
        drawn = shown(rectangle, 9, width, height)
        assert same(drawn, trained(condition, 9, width, height)), rectangle
        outcomes.add(drawn is None)
    assert True in outcomes, "the grid has rectangles that are refused"
    assert (False in outcomes) == (width * height > 32 * 32)


@pytest.mark.parametrize("num_frames", [1, 9, 25, 89, 121])
@pytest.mark.parametrize("kind", [Suffix, Prefix])
def test_windows(kind: type[Suffix] | type[Prefix], num_frames: int) -> None:
    for num_latent_frames in range(1, 18):
        condition = kind(num_latent_frames=num_latent_frames)
        window = window_of(condition, Fraction(24))
        drawn = shown(Window(window.num_frames, window.at_end), num_frames, 96, 64)
        assert same(drawn, trained(condition, num_frames, 96, 64)), condition
