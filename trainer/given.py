"""What a preview is given of its clip: the trained task, on the validation clips (2.4, 4).

A mask or a rectangle leaves the clip where it is: the preview is as long as the clip. A suffix or
prefix is a window of the clip, moved to the same end of a preview of the validation's own length:
the clip may be shorter than that. Its latents are those of the whole clip, cut; the window encoded
alone would give others (1.4).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from preprocessing.manifest import VALIDATION_FILE, ValidationManifest
from trainer.cache import EncodedCache, SampleLatents
from trainer.conditions import KeepMasks, Window, keep_masks, window_of
from trainer.errors import ConditionError
from trainer.footage import Footage
from trainer.latents import VideoGeometry, num_audio_latents
from trainer.preview import PreviewPrompt
from trainer.sampler import Given
from trainer.spec import Condition, Prefix, Suffix, TrainingSpec, ValidationSpec

_FIELD: Final = "validation"
"""The request's field that these clips come from."""


@dataclass(frozen=True)
class GivenSource:
    """A clip, what of it is given, and where that lies in a sample (here: in the preview)."""

    clip: Footage
    geometry: VideoGeometry
    """The sample's."""
    masks: KeepMasks
    windows: tuple[Window, ...]
    """What moves from the clip into the sample; empty where the clip covers it."""

    def given(self, latents: SampleLatents) -> tuple[Given, Given | None]:
        """The clip's ``latents`` in their places: video [1, N, 128], and audio [1, T, C] where
        some of it is kept."""
        shape = self.geometry
        frames = latents.video.unflatten(1, (-1, shape.latent_height * shape.latent_width))
        frames = self._placed(frames, shape.num_latent_frames, Window.of_video)
        video = Given(self.masks.video, frames.flatten(1, 2))
        keep = self.masks.audio
        if keep is None or not keep.any():
            return video, None
        assert latents.audio is not None  # open_sources saw to it
        return video, Given(keep, self._placed(latents.audio, len(keep), Window.of_audio))

    def _placed(self, clip: Tensor, length: int, part_of: Callable[[Window, int], slice]) -> Tensor:
        """``clip`` [1, L, ...] as it is, or its windows at the ends of zeros [1, length, ...]."""
        if not self.windows:
            return clip
        placed = clip.new_zeros(1, length, *clip.shape[2:])
        for window in self.windows:
            placed[:, part_of(window, length)] = clip[:, part_of(window, clip.shape[1])]
        return placed


def preview_prompts(
    prompts: Sequence[str], sources: Sequence[GivenSource], cache: EncodedCache
) -> list[PreviewPrompt]:
    """``prompts`` ready to be sampled, each with its source; without sources, from text alone."""
    if not sources:
        return [PreviewPrompt(prompt, cache.context(prompt)) for prompt in prompts]
    return [
        PreviewPrompt(
            prompt,
            cache.context(prompt),
            source.geometry,
            *source.given(cache.latents(source.clip)),
        )
        for prompt, source in zip(prompts, sources, strict=True)
    ]


def open_sources(folder: Path | None, spec: TrainingSpec, *, with_audio: bool) -> list[GivenSource]:
    """The sources of ``spec``'s previews, in the prompts' order; none where nothing is given (t2v).

    ``folder`` is one of `preprocessing.manifest.ValidationManifest`. Everything is checked here,
    before anything is encoded. Raises `ConditionError` where a clip is missing, too short, silent
    though its sound is to be kept, of another size, or leaves nothing to generate.
    """
    validation = spec.validation
    if not spec.conditions or not validation.prompts:
        return []
    if folder is None or not (folder / VALIDATION_FILE).is_file():
        raise ConditionError(
            "This training's previews are made from clips, and none were prepared. Give a clip "
            "with each validation prompt, or no validation prompts.",
            field=_FIELD,
        )
    entries = ValidationManifest.load(folder).clips
    if len(entries) != len(validation.prompts):
        raise ConditionError(
            f"There are {len(validation.prompts)} validation prompts and {len(entries)} clips to "
            "make previews from. Give one clip with each prompt.",
            field=_FIELD,
        )
    clips = [
        Footage.of(folder, entry, f"validation clip {number}", with_audio=with_audio)
        for number, entry in enumerate(entries, start=1)
    ]
    return [_source(clip, spec.conditions, validation, with_audio=with_audio) for clip in clips]


def _source(
    clip: Footage,
    conditions: Sequence[Condition],
    validation: ValidationSpec,
    *,
    with_audio: bool,
) -> GivenSource:
    found = clip.geometry
    if (found.width, found.height) != (validation.width, validation.height):
        raise ConditionError(
            f"The {clip.name} is {found.width}x{found.height}, but previews are "
            f"{validation.width}x{validation.height}. Prepare it for the validation's size.",
            field=_FIELD,
        )
    windows = tuple(
        window_of(condition, found.frame_rate)
        for condition in conditions
        if isinstance(condition, Suffix | Prefix)
    )
    for window in windows:
        if found.num_frames < window.num_frames:
            raise ConditionError(
                f"The {clip.name} has {found.num_frames} frames, but {window.num_frames} of it "
                "are to be given. Use a longer clip or fewer conditioning frames.",
                field=_FIELD,
            )
    geometry = found
    if covered_by_windows := len(windows) == len(conditions):
        geometry = VideoGeometry(validation.num_frames, found.height, found.width, found.frame_rate)
    num_audio_tokens = None
    if with_audio:
        num_audio_tokens = num_audio_latents(geometry.num_frames, geometry.frame_rate)
    try:
        masks = keep_masks(
            conditions, geometry, num_audio_tokens=num_audio_tokens, sample_mask=clip.mask()
        )
    except ConditionError as error:
        raise ConditionError(f"The {clip.name}: {error}", field=_FIELD) from error
    if masks.audio is not None and masks.audio.any() and clip.audio is None:
        raise ConditionError(
            f"The {clip.name} has no sound, but its sound is to be given with its pictures. Use a "
            "clip with an audio track, or train without audio.",
            field=_FIELD,
        )
    return GivenSource(clip, geometry, masks, windows if covered_by_windows else ())
