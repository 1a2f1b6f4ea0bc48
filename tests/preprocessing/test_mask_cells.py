"""From pixel masks to latent cells: golden 03, and what holds for every mask."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from safetensors.numpy import load_file

from preprocessing.latent_mask import LatentMask, kept_cells, latent_frame_of, latent_keep_mask
from tests.conftest import GOLDEN

MASKS = load_file(GOLDEN / "03_masks.safetensors")
CAUSAL = sorted(name for name in MASKS if name.endswith("_causal_editany_latent_keep"))
PROBES = sorted(name for name in MASKS if name.startswith("probe_"))
STILLS = sorted(
    name.removesuffix("_keep_pixels_u8")
    for name in MASKS
    if re.fullmatch(r"image_.*_keep_pixels_u8", name)
    and [32 * n for n in MASKS[name.replace("keep_pixels_u8", "train_latent_keep")].shape[1:]]
    == [*MASKS[name].shape]
)
"""Of another shape, the reference stretches the mask to the bucket; we crop it like its clip."""
MOVING = sorted(
    name.removesuffix("_keep_pixels_u8")
    for name in MASKS
    if re.fullmatch(r"moving_.*_keep_pixels_u8", name)
)

Floats = NDArray[np.float64]


def reference_reduction(keep: Floats, num_latent_frames: int) -> Floats:
    """What the reference does, faults included (1.5): [F, H, W] in [0, 1] to [f, h, w]."""
    frames, height, width = keep.shape
    cells = keep.reshape(frames, height // 32, 32, width // 32, 32).mean(axis=(2, 4))
    padded = np.concatenate([cells, np.zeros((-frames % 8, *cells.shape[1:]))])
    grouped = padded.reshape(-1, 8, *cells.shape[1:]).max(axis=1)
    return (grouped[:num_latent_frames] > 0.5).astype(np.float64)


@pytest.mark.golden
@pytest.mark.parametrize("name", CAUSAL)
def test_moving_masks_are_reduced_causally_and_edit_if_any(name: str) -> None:
    pixels = MASKS[name.replace("_causal_editany_latent_keep", "_keep_pixels_u8")]
    assert np.array_equal(latent_keep_mask(pixels), MASKS[name] == 1)


@pytest.mark.golden
@pytest.mark.parametrize("name", MOVING)
def test_the_reference_would_edit_less(name: str) -> None:
    """Ours and the reference's differ, so the golden test above tells them apart."""
    pixels, reference = MASKS[f"{name}_keep_pixels_u8"], MASKS[f"{name}_train_latent_keep"]
    assert np.array_equal(reference_reduction(pixels / 255, len(reference)), reference)
    assert np.count_nonzero(~latent_keep_mask(pixels)) > np.count_nonzero(reference == 0)


@pytest.mark.golden
@pytest.mark.parametrize("name", STILLS)
def test_a_still_mask_of_the_clips_size_equals_the_reference(name: str) -> None:
    reference, pixels = MASKS[f"{name}_train_latent_keep"], MASKS[f"{name}_keep_pixels_u8"]
    every_frame = np.broadcast_to(pixels, (8 * len(reference) - 7, *pixels.shape))
    assert np.array_equal(latent_keep_mask(every_frame), reference == 1)


@pytest.mark.golden
@pytest.mark.parametrize("name", PROBES)
def test_probes_show_where_the_reference_puts_a_frame_and_where_we_do(name: str) -> None:
    found = re.fullmatch(r"probe_(edit|keep)_only_frame(\d+)_train_latent_keep", name)
    assert found
    verb, frame = found[1], int(found[2])
    num_latent_frames = len(MASKS[name])
    pixels = np.full((8 * num_latent_frames - 7, 32, 32), 255 if verb == "edit" else 0, np.uint8)
    pixels[frame] = 255 - pixels[frame]
    reference = reference_reduction(pixels / 255, num_latent_frames)
    assert np.array_equal(reference[:, 0, 0], MASKS[name])
    ours = latent_keep_mask(pixels)[:, 0, 0]
    if verb == "edit":
        assert np.flatnonzero(~ours).tolist() == [-(-frame // 8)]
    else:
        # Kept in all frames of its group: only frame 0 is alone in one.
        assert np.flatnonzero(ours).tolist() == ([0] if frame == 0 else [])


def test_half_of_a_cell_is_regenerated_and_one_level_more_is_kept() -> None:
    frame = np.zeros((32, 64), np.uint8)
    frame[:16] = 255
    assert not kept_cells(frame).any()
    frame[16, 0] = 1
    assert kept_cells(frame).tolist() == [[True, False]]


@pytest.mark.parametrize("count", [8, 16, 24])
def test_a_kept_suffix_is_whole_latent_frames(count: int) -> None:
    pixels = np.zeros((25, 32, 32), np.uint8)
    pixels[-count:] = 255
    assert latent_keep_mask(pixels)[:, 0, 0].tolist() == [i >= 4 - count // 8 for i in range(4)]


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((24, 32, 32), np.uint8, "8k \\+ 1 frames, not 24"),
        ((25, 33, 32), np.uint8, "not uint8"),
        ((25, 32, 32), np.float32, "not float32"),
        ((32, 32), np.uint8, "must be \\[F, H, W\\]"),
    ],
)
def test_other_arrays_are_a_bug(shape: tuple[int, ...], dtype: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        latent_keep_mask(np.zeros(shape, dtype))


# Properties (`ltx-training.md` 7.4, 5).

cell_sizes = st.integers(1, 3)
num_frames = st.integers(0, 4).map(lambda k: 8 * k + 1)


@st.composite
def frames(draw: st.DrawFn) -> NDArray[np.uint8]:
    shape = 32 * draw(cell_sizes), 32 * draw(cell_sizes)
    coarse = draw(hnp.arrays(np.uint8, (shape[0] // 16, shape[1] // 16)))
    return coarse.repeat(16, axis=0).repeat(16, axis=1)


@settings(max_examples=60, deadline=None)
@given(frames(), num_frames)
def test_a_static_mask_gives_equal_latent_frames(frame: NDArray[np.uint8], count: int) -> None:
    kept = latent_keep_mask(np.broadcast_to(frame, (count, *frame.shape)))
    assert len(kept) == (count - 1) // 8 + 1
    assert (kept == kept_cells(frame)).all()


@settings(max_examples=60, deadline=None)
@given(st.data(), num_frames)
def test_white_in_one_frame_only_edits_its_latent_frame(data: st.DataObject, count: int) -> None:
    k = data.draw(st.integers(0, count - 1))
    pixels = np.full((count, 32, 64), 255, np.uint8)
    pixels[k] = 0
    edited = np.flatnonzero(~latent_keep_mask(pixels).all(axis=(1, 2)))
    assert edited.tolist() == [-(-k // 8)] == [latent_frame_of(k)]


@settings(max_examples=30, deadline=None)
@given(cell_sizes, cell_sizes, num_frames)
def test_all_white_keeps_nothing_all_black_everything(h: int, w: int, count: int) -> None:
    white = np.zeros((count, 32 * h, 32 * w), np.uint8)
    assert not latent_keep_mask(white).any()
    assert latent_keep_mask(255 - white).all()


@settings(max_examples=40, deadline=None)
@given(frames(), num_frames)
def test_frames_may_come_in_any_order(frame: NDArray[np.uint8], count: int) -> None:
    rolled = np.stack([np.roll(frame, 16 * i, axis=0) for i in range(count)])
    mask = LatentMask(*rolled.shape)
    order = np.random.default_rng(count).permutation(count)
    for i in order:
        mask.put(rolled[i], [int(i)])
    assert np.array_equal(mask.kept, latent_keep_mask(rolled))


@settings(max_examples=40, deadline=None)
@given(frames(), num_frames)
def test_more_white_never_keeps_more(frame: NDArray[np.uint8], count: int) -> None:
    darker = np.broadcast_to(frame // 2, (count, *frame.shape))
    kept = latent_keep_mask(np.broadcast_to(frame, (count, *frame.shape)))
    assert not (latent_keep_mask(darker) & ~kept).any()
