"""Resize-to-cover and crop against the reference's numbers, and against exact arithmetic."""

from fractions import Fraction

import av
import numpy as np
import pytest
from safetensors.numpy import load_file

from preprocessing.media.geometry import MAX_PHASE_ERROR, cover, crop_axis
from tests.conftest import GOLDEN
from tests.preprocessing.media.reference import (
    full_chroma_rgb,
    noisy_frame,
    psnr,
    reference,
    through_graph,
)

PICTURES = load_file(GOLDEN / "10_preprocess.safetensors")
CASES = sorted(name.removesuffix(".in_u8") for name in PICTURES if name.endswith(".in_u8"))

BORDER = 4
"""Pixels at the frame's own edge where bicubic kernels reach outside: the reference leaves out
what is not there, swscale repeats the last pixel."""


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_golden_pixels(case: str) -> None:
    pictures, wanted = PICTURES[f"{case}.in_u8"], PICTURES[f"{case}.out"]
    wanted = (wanted.transpose(0, 2, 3, 1) + 1) / 2 * 255
    height, width = wanted.shape[1:3]
    for picture, want in zip(pictures, wanted, strict=True):
        exact = reference(picture, width, height)
        assert np.abs(exact - want).max() < 0.01

        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        got = through_graph(frame, width, height)
        inside = np.s_[BORDER:-BORDER, BORDER:-BORDER]
        assert np.abs(got - want)[inside].max() <= 2
        assert np.abs(got - want).max() <= 4
        assert psnr(got, want) >= 45
        assert abs((got - want).mean()) <= 0.5


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((1920, 1080), (768, 768)),
        ((1920, 1080), (448, 768)),
        ((1280, 720), (512, 512)),
        ((640, 480), (768, 448)),
        ((1080, 1920), (960, 544)),
        ((854, 480), (512, 288)),
    ],
    ids=str,
)
def test_quality_on_noise(source: tuple[int, int], size: tuple[int, int]) -> None:
    """Gates of `reliability.md` 5.2: at least 45 dB and a bias of at most half a level."""
    frame = noisy_frame(*source)
    want = reference(full_chroma_rgb(frame), *size)
    got = through_graph(frame, *size)
    assert psnr(got, want) >= 45
    assert abs((got - want).mean()) <= 0.5


BUCKETS = [(512, 288), (512, 512), (288, 512), (768, 448), (768, 768), (960, 544), (544, 960)]
SOURCES = [
    (1920, 1080),
    (1280, 720),
    (3840, 2160),
    (854, 480),
    (720, 576),
    (1080, 1920),
    (321, 239),
]


@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_cut_lands_on_the_sampling_points_of_the_whole(
    source: tuple[int, int], bucket: tuple[int, int]
) -> None:
    fit = cover(Fraction(source[0]), Fraction(source[1]), *bucket)
    assert fit.width >= bucket[0]
    assert fit.height >= bucket[1]
    assert fit.width == bucket[0] or fit.height == bucket[1]
    axes = (source[0], fit.width, fit.left, bucket[0]), (source[1], fit.height, fit.top, bucket[1])
    for length, scaled, left, size in axes:
        cut = crop_axis(length, scaled, left, size, 2)
        assert cut.start >= 0
        assert cut.start + cut.length <= length
        assert cut.start % 2 == 0
        assert cut.trim >= 0
        assert cut.trim + size <= cut.scaled
        pixel = np.arange(size)
        wanted = (left + pixel + 0.5) * length / scaled
        given = cut.start + (cut.trim + pixel + 0.5) * cut.length / cut.scaled
        assert np.abs(wanted - given).max() * scaled / length <= MAX_PHASE_ERROR + 1e-9


@pytest.mark.parametrize(
    ("source", "bucket", "wanted"),
    [
        ((101, 50), (32, 32), (64, 32, 16, 0)),
        ((40, 97), (64, 32), (64, 155, 0, 61)),
        ((1920, 1080), (768, 768), (1365, 768, 298, 0)),
        ((1920, 1080), (960, 544), (967, 544, 3, 0)),
    ],
    ids=str,
)
def test_cover(
    source: tuple[int, int], bucket: tuple[int, int], wanted: tuple[int, int, int, int]
) -> None:
    fit = cover(Fraction(source[0]), Fraction(source[1]), *bucket)
    assert (fit.width, fit.height, fit.left, fit.top) == wanted
