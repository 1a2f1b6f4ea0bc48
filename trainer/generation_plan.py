"""What is sampled for a generation, what of it is given, and which part of it is shown."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trainer.cache import EncodedCache
from trainer.composite import Overlay, lay_sound
from trainer.generation import GenerationSpec
from trainer.latents import VideoGeometry
from trainer.mp4 import SAMPLE_RATE, fit_audio, num_audio_samples
from trainer.sampler import Given
from trainer.source import GenerationSource, grid_geometry


@dataclass(frozen=True)
class SamplePlan:
    """What is sampled for a spec, and which part of it is shown."""

    source: GenerationSource | None
    geometry: VideoGeometry
    """Of the sample: the grid's."""
    num_frames: int
    """Of the result."""

    @classmethod
    def of(cls, spec: GenerationSpec, source: GenerationSource | None) -> "SamplePlan":
        if source is not None:
            return cls(source, source.given.geometry, source.num_frames)
        geometry = grid_geometry(spec.width, spec.height, spec.num_frames, spec.frame_rate)
        return cls(None, geometry, spec.num_frames)

    @property
    def num_cut_in_front(self) -> int:
        """Frames of the sample before the first that is shown."""
        return 0 if self.source is None else self.source.num_cut_in_front

    def given(self, spec: GenerationSpec, cache: EncodedCache) -> tuple[Given | None, Given | None]:
        """The given tokens of video and sound, to be held as firmly as ``spec`` says."""
        if self.source is None:
            return None, None
        video, audio = self.source.given.given(cache.latents(self.source.clip))
        held = replace(video, strength=spec.strength)
        return held, None if audio is None else replace(audio, strength=spec.strength)

    def overlay(self, spec: GenerationSpec) -> Overlay | None:
        """The source's own pixels, where they are to be laid over the result."""
        if self.source is None or not _is_laid_over(spec):
            return None
        assert spec.soft_seam_pixels is not None
        return self.source.overlay(spec.soft_seam_pixels)

    def lay_sound(self, sound: NDArray[np.float32], spec: GenerationSpec) -> NDArray[np.float32]:
        """The sample's ``sound`` with the source's own in its place."""
        if self.source is None or self.source.window is None or not _is_laid_over(spec):
            return sound
        own = self.source.clip.own_sound(SAMPLE_RATE)
        if own is None:
            return sound
        return lay_sound(sound, own, at_end=self.source.window.at_end)

    def cut_sound(self, sound: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is heard with the frames that are shown."""
        rate = self.geometry.frame_rate
        start = num_audio_samples(self.num_cut_in_front, rate)
        return fit_audio(sound[:, start:], num_audio_samples(self.num_frames, rate))


def _is_laid_over(spec: GenerationSpec) -> bool:
    """A source that is held loosely is meant to change."""
    return spec.soft_seam_pixels is not None and spec.strength == 1
