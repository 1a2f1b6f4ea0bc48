"""What a generation is given of its source: the prepared clip in the model's grid.

`preprocessing/prepare_source.py` writes the clip as large as it is in the canvas. Here it
is put into the grid, which goes on to the next 32 pixels and the next 8k + 1 frames. Tokens are
whole cells, but the encoder looks beyond a cell's border; what lies around a placed source is
therefore filled with its mirror image rather than with black, which would show in its outer cells.
"""

import hashlib
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preprocessing.manifest import SOURCE_FILE, Placement, SourceManifest
from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS, snap_num_frames
from trainer.audio import resample
from trainer.composite import Overlay, Stretch
from trainer.conditions import Window, keep_masks, window_of
from trainer.errors import ConditionError
from trainer.footage import Footage, file_hash
from trainer.generation import (
    ExtendPrefix,
    ExtendSuffix,
    GenerationSpec,
    Inpaint,
    Outpaint,
    num_result_frames,
    source_rule,
)
from trainer.given import GivenSource
from trainer.latents import VideoGeometry, num_audio_latents
from trainer.spec import Condition, KeepRectangle, Prefix, SampleMask, Suffix

_FIELD = "video_url"


def grid_geometry(width: int, height: int, num_frames: int, frame_rate: Fraction) -> VideoGeometry:
    """The smallest geometry of the model that holds a canvas and so many frames.

    >>> grid = grid_geometry(1280, 720, 100, Fraction(24))
    >>> grid.width, grid.height, grid.num_frames
    (1280, 736, 105)
    """
    return VideoGeometry(
        num_frames=snap_num_frames(num_frames + LATENT_STRIDE_FRAMES - 1),
        height=_up(height),
        width=_up(width),
        frame_rate=frame_rate,
    )


@dataclass(frozen=True)
class CanvasFootage(Footage):
    """A prepared source in the grid: ``geometry`` is the grid's."""

    placement: Placement
    num_frames: int
    """Of the file; the first is repeated in front or the last at the end, up to the geometry's."""
    held_in_front: bool

    @property
    def _num_held(self) -> int:
        return self.geometry.num_frames - self.num_frames

    def own_frames(self) -> NDArray[np.uint8]:
        """[F, h, w, 3] as prepared, mapped into memory."""
        frames: NDArray[np.uint8] = np.load(self.folder / self.frames, mmap_mode="r")
        return frames

    def own_sound(self, sample_rate: int) -> NDArray[np.float32] | None:
        """[2, S] at ``sample_rate``, as long as its own frames; None where it has none."""
        if self.audio is None:
            return None
        samples = super().waveform()
        return resample(samples, self.audio.sample_rate, sample_rate).numpy()

    def pixels(self) -> "CanvasFrames":
        first = -self._num_held if self.held_in_front else 0
        return CanvasFrames(self.own_frames(), self.placement, self.geometry, first)

    def waveform(self) -> Tensor:
        """[2, S], with silence where frames are repeated in front."""
        assert self.audio is not None
        samples = super().waveform()
        if not self.held_in_front:
            return samples
        silence = round(self._num_held / self.geometry.frame_rate * self.audio.sample_rate)
        return torch.nn.functional.pad(samples, (silence, 0))


@dataclass(frozen=True)
class CanvasFrames:
    """Pictures of the grid, uint8 [F, H, W, 3], put together when they are asked for."""

    source: NDArray[np.uint8]
    placement: Placement
    geometry: VideoGeometry
    first: int
    """The source's frame that is shown first; those before its beginning repeat it."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.geometry.num_frames, self.geometry.height, self.geometry.width, 3

    def __getitem__(self, part: slice, /) -> NDArray[np.uint8]:
        shown = np.arange(self.shape[0])[part] + self.first
        frames = self.source[shown.clip(0, len(self.source) - 1)]
        place = self.placement
        return np.pad(
            frames,
            (
                (0, 0),
                (place.top, self.shape[1] - place.top - place.height),
                (place.left, self.shape[2] - place.left - place.width),
                (0, 0),
            ),
            mode="symmetric",
        )


@dataclass(frozen=True)
class GenerationSource:
    """A source, ready to be encoded, to be given and to be laid over the result."""

    given: GivenSource
    clip: CanvasFootage
    manifest: SourceManifest
    num_frames: int
    """Of the result."""

    @property
    def num_cut_in_front(self) -> int:
        """Frames of the grid that are cut from the beginning; the rest from the end."""
        at_end = any(window.at_end for window in self.given.windows)
        return self.given.geometry.num_frames - self.num_frames if at_end else 0

    @property
    def window(self) -> Window | None:
        """The stretch of time that is given, where it is one."""
        return self.given.windows[0] if self.given.windows else None

    def overlay(self, seam: int) -> Overlay:
        """Its own pixels, for the frames of the grid."""
        grid = self.given.geometry
        keep = self.given.masks.video.reshape(grid.num_latent_frames, grid.latent_height, -1)
        window, count = self.window, self.clip.num_frames
        stretch = Stretch(0, count)
        if window is not None:
            stretch = Stretch(
                start=grid.num_frames - count if window.at_end else 0,
                num_frames=count,
                fades_in=window.at_end and seam > 0,
                fades_out=not window.at_end and seam > 0,
            )
        return Overlay(self.clip.own_frames(), self.clip.placement, keep.numpy(), stretch, seam)


def open_source(folder: Path | None, spec: GenerationSpec) -> GenerationSource | None:
    """The source of ``spec``; None where nothing is given. Reads it once, to hash it.

    ``folder`` is one of `preprocessing.manifest.SourceManifest`, prepared by `source_rule`. Raises
    `ConditionError` where it is missing or was prepared for another spec, and where it leaves
    nothing to generate.
    """
    if source_rule(spec) is None:
        return None
    if folder is None or not (folder / SOURCE_FILE).is_file():
        raise ConditionError(
            "This generation starts from a clip, and none was prepared. Give a clip, or generate "
            "from text alone.",
            field=_FIELD,
        )
    manifest = SourceManifest.load(folder)
    if (manifest.width, manifest.height, manifest.frame_rate) != (
        spec.width,
        spec.height,
        spec.frame_rate,
    ):
        raise ConditionError(
            f"The source was prepared for {manifest.width}x{manifest.height} at "
            f"{manifest.frame_rate} frames per second, not for {spec.width}x{spec.height} at "
            f"{spec.frame_rate}. Prepare it again.",
            field=_FIELD,
        )
    condition = _condition(spec, manifest)
    windows: tuple[Window, ...] = ()
    if isinstance(condition, Suffix | Prefix):
        windows = (window_of(condition, spec.frame_rate),)
        _require_room(windows[0], spec.num_frames)
    num_frames = num_result_frames(spec, manifest.num_frames)
    geometry = grid_geometry(spec.width, spec.height, num_frames, spec.frame_rate)
    clip = _footage(folder, manifest, held_in_front=isinstance(condition, Suffix))
    num_audio_tokens = None
    if spec.with_audio and clip.audio is not None:
        num_audio_tokens = num_audio_latents(geometry.num_frames, geometry.frame_rate)
    try:
        masks = keep_masks(
            [condition], geometry, num_audio_tokens=num_audio_tokens, sample_mask=clip.mask()
        )
    except ConditionError as error:
        raise ConditionError(f"Of the source: {error}", field=_FIELD) from error
    given = GivenSource(clip, geometry, masks, windows)
    return GenerationSource(given, clip, manifest, num_frames)


def _require_room(window: Window, num_frames: int) -> None:
    """Frames beside those that are given; the grid may have some that nobody sees."""
    if window.num_frames >= num_frames:
        raise ConditionError(
            f"The video has {num_frames} frames and {window.num_frames} of the source are given, "
            "so nothing is left to generate. Ask for more frames, or give fewer.",
            field="num_frames",
        )


def _condition(spec: GenerationSpec, manifest: SourceManifest) -> Condition:
    """The task as the condition that trainings know."""
    match spec.task:
        case Outpaint():
            place = manifest.placement
            return KeepRectangle(
                left=place.left,
                top=place.top,
                right=_up(place.left + place.width),
                bottom=_up(place.top + place.height),
                frame_width=_up(manifest.width),
                frame_height=_up(manifest.height),
            )
        case Inpaint():
            return SampleMask()
        case ExtendSuffix(num_latent_frames=count):
            return Suffix(num_latent_frames=count)
        case ExtendPrefix(num_latent_frames=count):
            return Prefix(num_latent_frames=count)
        case None:
            raise AssertionError("source_rule looked")


def _footage(folder: Path, manifest: SourceManifest, *, held_in_front: bool) -> CanvasFootage:
    geometry = grid_geometry(
        manifest.width, manifest.height, manifest.num_frames, manifest.frame_rate
    )
    settings = (geometry, manifest.placement, manifest.audio, held_in_front)
    digest = hashlib.sha256(repr(settings).encode())
    for path in [manifest.frames, *([manifest.audio.path] if manifest.audio else [])]:
        digest.update(file_hash(folder / path))
    return CanvasFootage(
        folder=folder,
        name="source",
        frames=manifest.frames,
        audio=manifest.audio,
        keep_mask=manifest.keep_mask,
        geometry=geometry,
        hash=digest.hexdigest(),
        placement=manifest.placement,
        num_frames=manifest.num_frames,
        held_in_front=held_in_front,
    )


def _up(pixels: int) -> int:
    return -(-pixels // LATENT_STRIDE_PIXELS) * LATENT_STRIDE_PIXELS
