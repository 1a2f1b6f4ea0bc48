"""Keep masks: golden 03, the corrected reduction, rectangles, windows, refusals."""

import math
import re
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tests.trainer.jobs import golden
from trainer.conditions import keep_masks, latent_keep_mask
from trainer.errors import ConditionError
from trainer.latents import VideoGeometry
from trainer.spec import KeepRectangle, Prefix, SampleMask, Suffix

MASKS = golden("03_masks")
CAUSAL = sorted(name for name in MASKS if name.endswith("_causal_editany_latent_keep"))
REFERENCE = sorted(
    name.removesuffix("_keep_pixels_u8") for name in MASKS if name.endswith("_keep_pixels_u8")
)
PROBES = sorted(name for name in MASKS if name.startswith("probe_"))
RECTANGLES = sorted(name for name in MASKS if name.startswith("outpaint_"))
SUFFIXES = sorted(name for name in MASKS if name.startswith("suffix_"))

GEOMETRY = VideoGeometry(25, 64, 96, Fraction(24))


def geometry_of(latent_mask: Tensor) -> VideoGeometry:
    f, h, w = latent_mask.shape
    return VideoGeometry(8 * f - 7, 32 * h, 32 * w, Fraction(24))


STATIC = [
    name
    for name in REFERENCE
    for geometry in [geometry_of(MASKS[f"{name}_train_latent_keep"])]
    if MASKS[f"{name}_keep_pixels_u8"].shape == (geometry.height, geometry.width)
]
"""Of another aspect, the reference stretches the mask; ingest crops it like its clip (1.5 c)."""


def reference_reduction(keep: Tensor, num_latent_frames: int) -> Tensor:
    """What the reference does, faults included (1.5): [F, H, W] in [0, 1] -> [f, h, w]."""
    cells = torch.nn.functional.avg_pool2d(keep[:, None], 32)[:, 0]
    padding = -len(cells) % 8
    cells = torch.cat([cells, cells.new_zeros(padding, *cells.shape[1:])])
    return (cells.unflatten(0, (-1, 8)).amax(dim=1)[:num_latent_frames] > 0.5).float()


@pytest.mark.golden
@pytest.mark.parametrize("name", CAUSAL)
def test_moving_masks_are_reduced_causally_and_edit_if_any(name: str) -> None:
    pixels = MASKS[name.replace("_causal_editany_latent_keep", "_keep_pixels_u8")]
    expected = MASKS[name]
    assert torch.equal(latent_keep_mask(pixels, geometry_of(expected)).float(), expected)


@pytest.mark.golden
@pytest.mark.parametrize("name", REFERENCE)
def test_we_know_what_the_reference_does(name: str) -> None:
    expected = MASKS[f"{name}_train_latent_keep"]
    geometry = geometry_of(expected)
    pixels = MASKS[f"{name}_keep_pixels_u8"]
    frames = pixels if pixels.ndim == 3 else pixels[None]
    keep = torch.nn.functional.interpolate(
        frames[:, None].float() / 255,
        size=(geometry.height, geometry.width),
        mode="bilinear",
        antialias=True,
    )[:, 0]
    keep = keep.expand(geometry.num_frames, -1, -1)
    assert torch.equal(reference_reduction(keep, geometry.num_latent_frames), expected)


@pytest.mark.golden
@pytest.mark.parametrize("name", STATIC)
def test_a_static_mask_of_the_clips_size_gives_the_reference_mask(name: str) -> None:
    expected = MASKS[f"{name}_train_latent_keep"]
    ours = latent_keep_mask(MASKS[f"{name}_keep_pixels_u8"], geometry_of(expected))
    assert torch.equal(ours.float(), expected)


@pytest.mark.golden
@pytest.mark.parametrize("name", PROBES)
def test_probes_show_where_the_reference_puts_a_frame_and_where_we_do(name: str) -> None:
    verb, frame = re.fullmatch(
        r"probe_(edit|keep)_only_frame(\d+)_train_latent_keep", name
    ).groups()
    geometry = VideoGeometry(8 * len(MASKS[name]) - 7, 32, 32, Fraction(24))
    pixels = torch.full((geometry.num_frames, 32, 32), 255 if verb == "edit" else 0).byte()
    pixels[int(frame)] = 255 - pixels[int(frame)]
    reference = reference_reduction(pixels / 255, geometry.num_latent_frames)
    assert torch.equal(reference[:, 0, 0], MASKS[name])
    ours = latent_keep_mask(pixels, geometry)[:, 0, 0].tolist()
    latent_frame = math.ceil(int(frame) / 8)
    if verb == "edit":
        assert [i for i, kept in enumerate(ours) if not kept] == [latent_frame]
    else:
        # Kept in every frame of the token: true for frame 0 alone, the only token of one frame.
        assert [i for i, kept in enumerate(ours) if kept] == ([0] if latent_frame == 0 else [])


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
    pixels = torch.zeros(25, 64, 96, dtype=torch.uint8)
    pixels[25 - 8 * count :] = 255
    suffix = keep_masks([Suffix(num_latent_frames=count)], GEOMETRY, num_audio_tokens=None)
    masked = keep_masks([SampleMask()], GEOMETRY, num_audio_tokens=None, sample_mask=pixels)
    assert torch.equal(suffix.video, masked.video)
    assert suffix.video.sum() == count * 2 * 3
    assert suffix.video[-count * 2 * 3 :].all()


def test_a_prefix_is_the_mask_of_its_leading_pixel_frames() -> None:
    pixels = torch.zeros(25, 64, 96, dtype=torch.uint8)
    pixels[:9] = 255
    prefix = keep_masks([Prefix(num_latent_frames=2)], GEOMETRY, num_audio_tokens=26)
    assert torch.equal(prefix.video.view(4, 2, 3), latent_keep_mask(pixels, GEOMETRY))
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


def test_static_masks_and_white_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    static = (torch.rand(64, 96, generator=generator) * 255).byte()
    grid = latent_keep_mask(static, GEOMETRY)
    assert (grid == grid[:1]).all()
    assert not latent_keep_mask(torch.zeros(64, 96, dtype=torch.uint8), GEOMETRY).any()


def test_half_of_a_cell_is_not_kept() -> None:
    static = torch.zeros(64, 96, dtype=torch.uint8)
    static[:16] = 255
    assert not latent_keep_mask(static, GEOMETRY).any()
    static[16, 0] = 255
    assert latent_keep_mask(static, GEOMETRY)[:, 0, 0].all()


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


@pytest.mark.parametrize("shape", [(24, 64, 96), (25, 64, 64), (96, 64)])
def test_masks_of_another_size_are_a_bug(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mask must be uint8"):
        latent_keep_mask(torch.zeros(shape, dtype=torch.uint8), GEOMETRY)
