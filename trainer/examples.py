"""Training batches of one encoded sample each, on the device."""

from functools import lru_cache

import torch
from torch import Tensor

from trainer.conditions import KeepMasks, keep_masks
from trainer.encode import Dataset, EncodedCache
from trainer.flow import Clean, Example
from trainer.latents import VideoGeometry, audio_coords, video_coords
from trainer.spec import TrainingSpec


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
        self._masks = lru_cache(maxsize=8)(self._make_masks)

    def __len__(self) -> int:
        return len(self._dataset.manifest.samples)

    def __getitem__(self, index: int) -> Example:
        sample = self._dataset.manifest.samples[index]
        geometry = self._dataset.geometry(sample)
        latents = self._cache.latents(self._dataset, sample)
        context = self._cache.context(sample.caption)
        num_audio_tokens = None if latents.audio is None else latents.audio.shape[1]
        coords = self._coords(geometry, num_audio_tokens)
        masks = self._masks(geometry, num_audio_tokens)
        audio = None
        if latents.audio is not None:
            audio = Clean(
                tokens=latents.audio.to(self._device),
                context=context.audio[None].to(self._device),
                coords=coords[1],
                keep=None if masks is None else masks.audio,
            )
        return Example(
            video=Clean(
                tokens=latents.video.to(self._device),
                context=context.video[None].to(self._device),
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

    def _make_masks(
        self, geometry: VideoGeometry, num_audio_tokens: int | None
    ) -> KeepMasks | None:
        """[1, N] and [1, T]; None without conditions: every token is then generated."""
        if not self._spec.conditions:
            return None
        masks = keep_masks(self._spec.conditions, geometry, num_audio_tokens=num_audio_tokens)
        return KeepMasks(
            masks.video[None].to(self._device),
            None if masks.audio is None else masks.audio[None].to(self._device),
        )
