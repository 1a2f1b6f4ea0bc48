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
from trainer.spec import (
    NATIVE_FRAME_RATE,
    Condition,
    KeepRectangle,
    Prefix,
    SampleMask,
    Suffix,
)


@dataclass(frozen=True)
class KeepMasks:
    """True = given (clean), False = generated."""

    video: Tensor
    """[N] bool, in token order."""
    audio: Tensor | None
    """[T] bool, None where no audio is trained."""


@dataclass(frozen=True)
class Window:
    """The beginning or the end of a clip: how much of each stream it covers."""

    at_end: bool
    num_frames: int
    """Pixel frames."""
    num_latent_frames: int
    num_audio_latents: int

    def of_video(self, num_latent_frames: int) -> slice:
        """Its part of a clip of so many latent frames."""
        return self._part(num_latent_frames, self.num_latent_frames)

    def of_audio(self, num_latents: int) -> slice:
        """Its part of a sound of so many latents."""
        return self._part(num_latents, self.num_audio_latents)

    def _part(self, length: int, count: int) -> slice:
        return slice(max(0, length - count), length) if self.at_end else slice(0, count)


def keep_masks(
    conditions: Sequence[Condition],
    geometry: VideoGeometry,
    *,
    num_audio_tokens: int | None,
    sample_mask: Tensor | None = None,
) -> KeepMasks:
    """The union of what ``conditions`` keep of a clip of ``geometry``.

    ``sample_mask`` is the clip's own mask for `SampleMask`: [f, h, w] bool, True = given, reduced
    to latent cells by `preprocessing/latent_mask.py`. A kept prefix or suffix keeps the matching
    window of the audio. Raises `ConditionError` where the whole clip or, despite conditions,
    nothing of it would be kept, and `ValueError` for a mask of another shape or type.
    """
    grid = (geometry.num_latent_frames, geometry.latent_height, geometry.latent_width)
    video = torch.zeros(grid, dtype=torch.bool)
    audio = None if num_audio_tokens is None else torch.zeros(num_audio_tokens, dtype=torch.bool)
    for condition in conditions:
        match condition:
            case Suffix() | Prefix():
                window = window_of(condition, geometry.frame_rate)
                video[window.of_video(grid[0])] = True
                if audio is not None:
                    audio[window.of_audio(len(audio))] = True
            case KeepRectangle():
                columns, rows = condition.cells(geometry.width, geometry.height)
                video[:, rows.start : rows.stop, columns.start : columns.stop] = True
            case SampleMask():
                if sample_mask is None:
                    raise ConditionError(
                        "This training needs a mask for every clip. Give the clip a mask file."
                    )
                if sample_mask.dtype != torch.bool or sample_mask.shape != grid:
                    found = f"{sample_mask.dtype} {tuple(sample_mask.shape)}"
                    raise ValueError(f"the mask must be bool {grid}, not {found}")
                video |= sample_mask
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


def window_of(condition: Suffix | Prefix, frame_rate: Fraction) -> Window:
    """The first latent frame is one pixel frame, the others are eight each (1.1); the audio is
    what lasts as long, rounded (1.4)."""
    count = condition.num_latent_frames
    at_end = isinstance(condition, Suffix)
    num_frames = count * LATENT_STRIDE_FRAMES
    if not at_end:
        num_frames -= LATENT_STRIDE_FRAMES - 1
    return Window(
        at_end=at_end,
        num_frames=num_frames,
        num_latent_frames=count,
        num_audio_latents=num_audio_latents(num_frames, frame_rate),
    )


def describe(condition: Condition, *, width: int, height: int) -> dict[str, object]:
    """``condition`` for config.json: as it was asked for, and what it means in a training frame of
    this size, so that an inference can be set up the same way."""
    facts: dict[str, object] = condition.model_dump()
    match condition:
        case Suffix() | Prefix():
            window = window_of(condition, Fraction(NATIVE_FRAME_RATE))
            facts["conditioning_frames"] = window.num_frames
        case KeepRectangle():
            columns, rows = condition.cells(width, height)
            facts["snapped"] = {
                "left": columns.start * LATENT_STRIDE_PIXELS,
                "top": rows.start * LATENT_STRIDE_PIXELS,
                "right": columns.stop * LATENT_STRIDE_PIXELS,
                "bottom": rows.stop * LATENT_STRIDE_PIXELS,
            }
        case SampleMask():
            facts["mask"] = "each clip's own: white is regenerated, black is given"
        case _:
            assert_never(condition)
    return facts


def _named(conditions: Sequence[Condition]) -> str:
    return ", ".join(repr(condition) for condition in conditions)
