"""From conditions to keep masks: which tokens are given, which are generated (1.4, 1.5).

All modes of the service are one algorithm with different masks: a kept token goes in clean, has
timestep 0 and is not in the loss. This is the one place that knows the kinds of condition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import assert_never

import torch
from torch import Tensor

from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS
from trainer.errors import ConditionError
from trainer.latents import VideoGeometry, num_audio_latents
from trainer.spec import Condition, KeepRectangle, Prefix, SampleMask, Suffix


@dataclass(frozen=True)
class KeepMasks:
    """True = given (clean), False = generated."""

    video: Tensor
    """[N] bool, in token order."""
    audio: Tensor | None
    """[T] bool, None where no audio is trained."""


def keep_masks(
    conditions: Sequence[Condition],
    geometry: VideoGeometry,
    *,
    num_audio_tokens: int | None,
    sample_mask: Tensor | None = None,
) -> KeepMasks:
    """The union of what ``conditions`` keep of a clip of ``geometry``.

    ``sample_mask`` is the clip's own mask, uint8 [F, H, W] in pixels, 255 = keep, for `SampleMask`.
    A kept prefix or suffix keeps the matching window of the audio. Raises `ConditionError` where
    the whole clip or, despite conditions, nothing of it would be kept.
    """
    grid = (geometry.num_latent_frames, geometry.latent_height, geometry.latent_width)
    video = torch.zeros(grid, dtype=torch.bool)
    audio = None if num_audio_tokens is None else torch.zeros(num_audio_tokens, dtype=torch.bool)
    for condition in conditions:
        match condition:
            case Suffix(num_latent_frames=count):
                video[max(0, grid[0] - count) :] = True
                if audio is not None:
                    window = _audio_window(count * LATENT_STRIDE_FRAMES, geometry.frame_rate)
                    audio[max(0, len(audio) - window) :] = True
            case Prefix(num_latent_frames=count):
                video[:count] = True
                if audio is not None:
                    num_frames = (count - 1) * LATENT_STRIDE_FRAMES + 1
                    audio[: _audio_window(num_frames, geometry.frame_rate)] = True
            case KeepRectangle():
                rows, columns = _latent_rectangle(condition, geometry)
                video[:, rows, columns] = True
            case SampleMask():
                if sample_mask is None:
                    raise ConditionError("This training needs a mask for every clip.")
                video |= latent_keep_mask(sample_mask, geometry)
            case _:
                assert_never(condition)
    if conditions and video.all():
        raise ConditionError(
            f"Every part of the {geometry.num_frames}-frame clip ({geometry.width}x"
            f"{geometry.height}) is given, so nothing is left to generate: {_named(conditions)}. "
            "Keep less of it, or use longer clips."
        )
    if conditions and not video.any():
        raise ConditionError(
            f"Nothing of the clip ({geometry.width}x{geometry.height}) is given after snapping to "
            f"{LATENT_STRIDE_PIXELS} px cells: {_named(conditions)}. Keep a larger part."
        )
    return KeepMasks(video.flatten(), audio)


def latent_keep_mask(mask: Tensor, geometry: VideoGeometry) -> Tensor:
    """Reduce a pixel mask, uint8 [F, H, W] or [H, W] with 255 = keep, to [f, h, w] bool.

    A 32x32 cell is kept in a frame when more than half of it is kept; a token is kept when its cell
    is kept in every frame of the token: {0}, {1..8}, {9..16}, ... So an edit seen in one frame only
    is generated. The reference groups {0..7}, {8..15}, ... and keeps on any frame (1.5).
    Raises ValueError for another size or frame count; integers throughout, so ties are exact.
    """
    if mask.ndim == 2:
        mask = mask.expand(geometry.num_frames, -1, -1)
    expected = (geometry.num_frames, geometry.height, geometry.width)
    if mask.dtype != torch.uint8 or tuple(mask.shape) != expected:
        raise ValueError(f"mask must be uint8 {expected}, not {mask.dtype} {tuple(mask.shape)}")
    cell = LATENT_STRIDE_PIXELS
    cells = mask.unflatten(2, (-1, cell)).unflatten(1, (-1, cell)).sum(dim=(2, 4))
    kept = cells * 2 > 255 * cell * cell
    later = kept[1:].unflatten(0, (-1, LATENT_STRIDE_FRAMES)).all(dim=1)
    return torch.cat([kept[:1], later])


def _audio_window(num_frames: int, frame_rate: Fraction) -> int:
    return num_audio_latents(num_frames, frame_rate)


def _latent_rectangle(rectangle: KeepRectangle, geometry: VideoGeometry) -> tuple[slice, slice]:
    """Both edges are scaled to the frame at hand, then floored to a cell; in integers."""

    def cells(start: int, end: int, meant_in: int, size: int) -> slice:
        last = size // LATENT_STRIDE_PIXELS
        scale = meant_in * LATENT_STRIDE_PIXELS
        return slice(min(start * size // scale, last), min(end * size // scale, last))

    rows = cells(rectangle.top, rectangle.bottom, rectangle.frame_height, geometry.height)
    columns = cells(rectangle.left, rectangle.right, rectangle.frame_width, geometry.width)
    return rows, columns


def _named(conditions: Sequence[Condition]) -> str:
    return ", ".join(repr(condition) for condition in conditions)
