"""Training batches of one encoded sample each, on the device."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from trainer.cache import EncodedCache
from trainer.conditions import KeepMasks, keep_masks
from trainer.errors import ConditionError
from trainer.flow import Clean, Example
from trainer.footage import Dataset, Footage
from trainer.latents import VideoGeometry, audio_coords, num_audio_latents, video_coords
from trainer.spec import Condition, TrainingSpec
from trainer.transfer import to_device


class Examples:
    """``examples[i]`` is sample i of the dataset as a batch of one. Read from the cache each time:
    16 MB of the real model, which the page cache holds."""

    def __init__(
        self, dataset: Dataset, cache: EncodedCache, spec: TrainingSpec, device: torch.device
    ) -> None:
        self._dataset = dataset
        self._cache = cache
        self._spec = spec
        self._device = device
        self._coords = lru_cache(maxsize=8)(self._make_coords)

    def __len__(self) -> int:
        return len(self._dataset.manifest.samples)

    def __getitem__(self, index: int) -> Example:
        clip = self._dataset.footage[index]
        latents = self._cache.latents(clip)
        context = self._cache.context(self._dataset.captions[index])
        num_audio_tokens = None if latents.audio is None else latents.audio.shape[1]
        coords = self._coords(clip.geometry, num_audio_tokens)
        masks = self._masks(clip)
        audio = None
        if latents.audio is not None:
            audio = Clean(
                tokens=to_device(latents.audio, self._device),
                context=to_device(context.audio[None], self._device),
                coords=coords[1],
                keep=None if masks is None else masks.audio,
            )
        return Example(
            video=Clean(
                tokens=to_device(latents.video, self._device),
                context=to_device(context.video[None], self._device),
                coords=coords[0],
                keep=None if masks is None else masks.video,
            ),
            audio=audio,
            num_conditions=len(self._spec.conditions),
        )

    def _make_coords(
        self, geometry: VideoGeometry, num_audio_tokens: int | None
    ) -> tuple[Tensor, Tensor]:
        return (
            video_coords(geometry, device=self._device),
            audio_coords(num_audio_tokens or 0, device=self._device),
        )

    def _masks(self, clip: Footage) -> KeepMasks | None:
        """[1, N] and [1, T]; None without conditions: every token is then generated."""
        if not self._spec.conditions:
            return None
        masks = clip_masks(clip, self._spec.conditions)
        return KeepMasks(
            to_device(masks.video[None], self._device),
            None if masks.audio is None else to_device(masks.audio[None], self._device),
        )


def clip_masks(clip: Footage, conditions: Sequence[Condition]) -> KeepMasks:
    """What ``conditions`` keep of a training clip; its own mask is read for it, every time.

    Raises `ConditionError` with the clip's name.
    """
    geometry = clip.geometry
    num_audio_tokens = None
    if clip.audio is not None:
        num_audio_tokens = num_audio_latents(geometry.num_frames, geometry.frame_rate)
    try:
        return keep_masks(
            conditions, geometry, num_audio_tokens=num_audio_tokens, sample_mask=clip.mask()
        )
    except ConditionError as error:
        raise ConditionError(f"{clip.name}: {error}") from error
