"""Prepared clips as the trainer reads them: pictures, sound and mask on disk, known by their bytes.

`preprocessing/manifest.py` says what lies in the two folders: a dataset's, and that of the clips
which previews are made from.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preprocessing.manifest import Audio, Manifest, Sample, ValidationClip
from trainer.latents import VideoGeometry
from trainer.tiling import Frames


@dataclass(frozen=True)
class Footage:
    """One clip before encoding. ``audio`` is None where no audio is trained."""

    folder: Path
    name: str
    """For messages: the clip's name in the archive, or the preview's number."""
    frames: str
    audio: Audio | None
    keep_mask: str | None
    geometry: VideoGeometry
    hash: str
    """Of what is encoded: pictures, sound, and the rate (it decides the audio's length)."""

    @classmethod
    def of(
        cls, folder: Path, entry: Sample | ValidationClip, name: str, *, with_audio: bool
    ) -> "Footage":
        """Reads all bytes once, to hash them."""
        num_frames, height, width, _ = np.load(folder / entry.frames, mmap_mode="r").shape
        audio = entry.audio if with_audio else None
        settings = (str(entry.frame_rate), audio.sample_rate if audio else None)
        digest = hashlib.sha256(repr(settings).encode())
        for path in [entry.frames, *([audio.path] if audio else [])]:
            digest.update(file_hash(folder / path))
        return cls(
            folder=folder,
            name=name,
            frames=entry.frames,
            audio=audio,
            keep_mask=entry.keep_mask,
            geometry=VideoGeometry(num_frames, height, width, entry.frame_rate),
            hash=digest.hexdigest(),
        )

    def pixels(self) -> Frames:
        """[F, H, W, 3], mapped into memory."""
        frames: NDArray[np.uint8] = np.load(self.folder / self.frames, mmap_mode="r")
        return frames

    def waveform(self) -> Tensor:
        """[2, S] in [-1, 1]."""
        assert self.audio is not None
        return torch.from_numpy(np.load(self.folder / self.audio.path))

    def mask(self) -> Tensor | None:
        """[f, h, w] bool, True = given; None where the clip has no mask of its own."""
        if self.keep_mask is None:
            return None
        return torch.from_numpy(np.load(self.folder / self.keep_mask))

    def mask_hash(self) -> bytes:
        return b"" if self.keep_mask is None else file_hash(self.folder / self.keep_mask)


class Dataset:
    """A prepared dataset and the hash of its bytes. Knows nothing of a model."""

    def __init__(self, folder: Path) -> None:
        self.manifest = Manifest.load(folder)
        with_audio = self.manifest.with_audio
        self.footage = tuple(
            Footage.of(folder, sample, sample.source, with_audio=with_audio)
            for sample in self.manifest.samples
        )
        digest = hashlib.sha256(self.manifest.model_dump_json().encode())
        for footage in self.footage:
            digest.update(footage.hash.encode() + footage.mask_hash())
        self.hash = digest.hexdigest()

    @property
    def captions(self) -> list[str]:
        return [sample.caption for sample in self.manifest.samples]


def file_hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
