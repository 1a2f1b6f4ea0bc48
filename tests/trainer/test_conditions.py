"""Keep masks: rectangles, windows and masks as conditions, and refusals. Golden 03's rectangles and
suffixes; its pixel masks are `tests/preprocessing/`'s."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from preprocessing.latent_mask import latent_keep_mask
from tests.trainer.jobs import golden
from trainer.conditions import describe, keep_masks
from trainer.errors import ConditionError
from trainer.latents import VideoGeometry
from trainer.spec import Condition, KeepRectangle, Prefix, SampleMask, Suffix

MASKS = golden("03_masks")
RECTANGLES = sorted(name for name in MASKS if name.startswith("outpaint_"))
SUFFIXES = sorted(name for name in MASKS if name.startswith("suffix_"))

GEOMETRY = VideoGeometry(25, 64, 96, Fraction(24))


def reduced(pixels: np.ndarray) -> torch.Tensor:
    """[F, H, W] with 255 = keep, as preprocessing hands it over."""
    return torch.from_numpy(latent_keep_mask(pixels))


@pytest.mark.golden
@pytest.mark.parametrize("name", RECTANGLES)
def test_rectangles_snap_like_the_reference(name: str) -> None:
    width, height, *edges = map(
        int, re.fullmatch(r"outpaint_(\d+)x(\d+)_y(\d+)_x(\d+)_y(\d+)_x(\d+)_keep", name).groups()
    )
    top, left, bottom, right = edges
    rectangle = KeepRectangle(
        left=left, top=top, right=right, bottom=bottom, frame_width=width, frame_height=height
    )
    geometry = VideoGeometry(9, height, width, Fraction(24))
    masks = keep_masks([rectangle], geometry, num_audio_tokens=None)
    grid = masks.video.view(2, height // 32, width // 32)
    assert torch.equal(grid[0].float(), MASKS[name])
    assert torch.equal(grid[0], grid[1])


@pytest.mark.golden
@pytest.mark.parametrize("name", SUFFIXES)
def test_suffixes_are_the_reference_suffixes(name: str) -> None:
    count, f, h, w = map(
        int, re.fullmatch(r"suffix_latent(\d+)_keep_f(\d+)_h(\d+)_w(\d+)", name).groups()
    )
    geometry = VideoGeometry(8 * f - 7, 32 * h, 32 * w, Fraction(24))
    masks = keep_masks([Suffix(num_latent_frames=count)], geometry, num_audio_tokens=None)
    assert torch.equal(masks.video.float()[None], MASKS[name])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_suffix_is_the_mask_of_its_trailing_pixel_frames(count: int) -> None:
    pixels = np.zeros((25, 64, 96), np.uint8)
    pixels[25 - 8 * count :] = 255
    suffix = keep_masks([Suffix(num_latent_frames=count)], GEOMETRY, num_audio_tokens=None)
    masked = keep_masks(
        [SampleMask()], GEOMETRY, num_audio_tokens=None, sample_mask=reduced(pixels)
    )
    assert torch.equal(suffix.video, masked.video)
    assert suffix.video.sum() == count * 2 * 3
    assert suffix.video[-count * 2 * 3 :].all()


def test_a_prefix_is_the_mask_of_its_leading_pixel_frames() -> None:
    pixels = np.zeros((25, 64, 96), np.uint8)
    pixels[:9] = 255
    prefix = keep_masks([Prefix(num_latent_frames=2)], GEOMETRY, num_audio_tokens=26)
    assert torch.equal(prefix.video.view(4, 2, 3), reduced(pixels))
    assert prefix.audio.nonzero().flatten().tolist() == list(range(9))  # 9 / 24 * 25


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(24, (8, 17, 25)), (30, (7, 13, 20)), (60, (3, 7, 10)), (8, (25, 50, 75))],
)
def test_the_audio_window_matches_the_suffix(rate: int, expected: tuple[int, ...]) -> None:
    geometry = VideoGeometry(89, 32, 32, Fraction(rate))
    for count, window in enumerate(expected, start=1):
        masks = keep_masks([Suffix(num_latent_frames=count)], geometry, num_audio_tokens=278)
        assert masks.audio.sum() == window
        assert masks.audio[-window:].all()


def test_conditions_join() -> None:
    """What any of them keeps is kept."""
    window, rectangle = (
        Suffix(num_latent_frames=1),
        KeepRectangle(left=0, top=0, right=32, bottom=32, frame_width=96, frame_height=64),
    )
    masks = keep_masks([window, rectangle], GEOMETRY, num_audio_tokens=26)
    grid = masks.video.view(4, 2, 3)
    assert grid[-1].all()
    assert grid[:-1].sum() == 3
    assert grid[:, 0, 0].all()
    assert masks.audio.sum() == 8


def test_a_rectangle_scales_with_the_frame() -> None:
    rectangle = KeepRectangle(
        left=128, top=128, right=640, bottom=640, frame_width=768, frame_height=768
    )

    def kept(height: int, width: int) -> tuple[int, ...]:
        geometry = VideoGeometry(89, height, width, Fraction(24))
        grid = keep_masks([rectangle], geometry, num_audio_tokens=None).video
        grid = grid.view(12, height // 32, width // 32)[0].nonzero()
        return (*grid[0].tolist(), *grid[-1].tolist(), len(grid) * 12)

    assert kept(768, 768) == (4, 4, 19, 19, 3072)
    assert kept(960, 960) == (5, 5, 24, 24, 4800)
    assert kept(544, 960) == (2, 5, 13, 24, 12 * 20 * 12)


RECTANGLE = {"frame_width": 96, "frame_height": 64}


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        pytest.param(Suffix(num_latent_frames=4), "nothing is left", id="suffix of all frames"),
        pytest.param(Prefix(num_latent_frames=9), "nothing is left", id="prefix beyond the end"),
        pytest.param(
            KeepRectangle(left=0, top=0, right=96, bottom=64, **RECTANGLE),
            "nothing is left",
            id="whole frame",
        ),
        pytest.param(
            KeepRectangle(left=33, top=0, right=63, bottom=64, **RECTANGLE),
            "Nothing of the clip",
            id="inside one cell",
        ),
        pytest.param(SampleMask(), "needs a mask", id="mask missing"),
    ],
)
def test_a_condition_leaves_something_and_gives_something(condition: object, message: str) -> None:
    with pytest.raises(ConditionError, match=message):
        keep_masks([condition], GEOMETRY, num_audio_tokens=None)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(torch.ones(3, 2, 3, dtype=torch.bool), id="a latent frame too few"),
        pytest.param(torch.ones(4, 3, 2, dtype=torch.bool), id="turned"),
        pytest.param(torch.ones(25, 64, 96, dtype=torch.bool), id="in pixels"),
        pytest.param(torch.ones(4, 2, 3, dtype=torch.uint8), id="not bool"),
    ],
)
def test_masks_of_another_shape_are_a_bug(mask: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"mask must be bool \(4, 2, 3\), not"):
        keep_masks([SampleMask()], GEOMETRY, num_audio_tokens=None, sample_mask=mask)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        pytest.param(
            Suffix(num_latent_frames=2),
            {"kind": "suffix", "num_latent_frames": 2, "conditioning_frames": 16},
            id="suffix",
        ),
        pytest.param(
            Prefix(num_latent_frames=2),
            {"kind": "prefix", "num_latent_frames": 2, "conditioning_frames": 9},
            id="prefix",
        ),
        pytest.param(
            KeepRectangle(
                left=33, top=30, right=224, bottom=191, frame_width=768, frame_height=768
            ),
            {
                "kind": "keep_rectangle",
                "left": 33,
                "top": 30,
                "right": 224,
                "bottom": 191,
                "frame_width": 768,
                "frame_height": 768,
                "snapped": {"left": 32, "top": 0, "right": 224, "bottom": 160},
            },
            id="rectangle",
        ),
        pytest.param(
            SampleMask(),
            {
                "kind": "sample_mask",
                "mask": "each clip's own: white is regenerated, black is given",
            },
            id="mask",
        ),
    ],
)
def test_conditions_can_be_read(condition: Condition, expected: dict[str, object]) -> None:
    assert describe(condition, width=768, height=768) == expected
