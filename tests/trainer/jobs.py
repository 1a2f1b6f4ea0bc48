"""Small datasets and jobs for the trainer's tests, and the golden files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from preprocessing.manifest import (
    Audio,
    Manifest,
    Sample,
    ValidationClip,
    ValidationManifest,
)
from tests.conftest import GOLDEN
from trainer.job import Job, JobDir
from trainer.spec import TrainingSpec, ValidationPrompt, ValidationSpec

WIDTH, HEIGHT, NUM_FRAMES = 64, 64, 9
AUDIO_RATE = 48000


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def golden_extra(name: str) -> dict[str, Any]:
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    return manifest["files"][f"{name}.safetensors"]["extra"]


def make_dataset(
    folder: Path,
    *,
    num_samples: int = 3,
    with_audio: bool = False,
    num_frames: int = NUM_FRAMES,
    frame_rate: Fraction = Fraction(24),
    caption: Callable[[int], str] = "clip {}".format,
) -> Path:
    """Moving gradients, each of its own colour, with a tone where there is sound."""
    (folder / "samples").mkdir(parents=True)
    samples = []
    for number in range(num_samples):
        generator = np.random.default_rng(number)
        shape = (num_frames, HEIGHT, WIDTH, 3)
        ramp = np.linspace(0, 255, WIDTH)[None, None, :, None] * generator.random(3)
        frames = ramp + 8 * np.arange(num_frames)[:, None, None, None]
        frames = np.broadcast_to(frames, shape) % 256
        np.save(folder / f"samples/{number}.frames.npy", frames.astype(np.uint8))
        audio = None
        if with_audio:
            length = round(num_frames / frame_rate * AUDIO_RATE)
            tone = np.sin(np.arange(length) * (0.02 + 0.01 * number)) * 0.5
            np.save(folder / f"samples/{number}.audio.npy", np.stack([tone, -tone]).astype("f4"))
            audio = Audio(path=f"samples/{number}.audio.npy", sample_rate=AUDIO_RATE)
        samples.append(
            Sample(
                id=f"{number}",
                frames=f"samples/{number}.frames.npy",
                audio=audio,
                caption=caption(number),
                frame_rate=frame_rate,
                source=f"{number}.mp4",
            )
        )
    Manifest(
        kind="image" if num_frames == 1 else "video",
        width=WIDTH,
        height=HEIGHT,
        num_frames=num_frames,
        with_audio=with_audio,
        samples=tuple(samples),
    ).save(folder)
    return folder


@dataclass(frozen=True)
class Shot:
    """A stretch of a real clip, as it is prepared."""

    frames: np.ndarray
    """uint8 [F, 64, 96, 3]"""
    frame_rate: Fraction
    sound: np.ndarray | None = None
    """float32 [2, S] at 48 kHz, as long as the frames."""

    def save(self, folder: Path, name: str, keep: np.ndarray | None = None) -> dict[str, Any]:
        """Write it; returns the fields that `Sample` and `ValidationClip` share."""
        fields: dict[str, Any] = {"frames": f"{name}.frames.npy", "frame_rate": self.frame_rate}
        np.save(folder / fields["frames"], self.frames)
        if self.sound is not None:
            fields["audio"] = Audio(path=f"{name}.audio.npy", sample_rate=AUDIO_RATE)
            np.save(folder / fields["audio"].path, self.sound)
        if keep is not None:
            fields["keep_mask"] = f"{name}.mask.npy"
            np.save(folder / fields["keep_mask"], keep)
        return fields


def shoot(path: Path, *, start: int, num_frames: int, with_audio: bool = False) -> Shot:
    """Frames ``start`` and on of a real clip, stretched to 96x64, and the sound that goes along."""
    with av.open(str(path)) as container:
        rate = Fraction(container.streams.video[0].average_rate)
        frames = [
            frame.to_ndarray(format="rgb24", width=96, height=64)
            for frame in islice(container.decode(video=0), start, start + num_frames)
        ]
    sound = None
    if with_audio:
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=AUDIO_RATE)
        with av.open(str(path)) as container:
            parts = [
                part.to_ndarray()
                for frame in container.decode(audio=0)
                for part in resampler.resample(frame)
            ]
        first, length = (round(count / rate * AUDIO_RATE) for count in (start, num_frames))
        sound = np.concatenate(parts, axis=1)[:, first : first + length]
        assert sound.shape[1] == length
    assert len(frames) == num_frames
    return Shot(np.stack(frames), rate, sound)


def save_dataset(
    folder: Path, shots: Sequence[Shot], masks: Sequence[np.ndarray] | None = None
) -> Path:
    """A prepared dataset of ``shots``, each with its mask where there are ``masks``."""
    folder.mkdir(parents=True)
    samples = tuple(
        Sample(
            id=f"{number}",
            caption=f"a scene, number {number}",
            source=f"{number}.mp4",
            **shot.save(folder, f"{number}", None if masks is None else masks[number]),
        )
        for number, shot in enumerate(shots)
    )
    num_frames, height, width, _ = shots[0].frames.shape
    Manifest(
        kind="video",
        width=width,
        height=height,
        num_frames=num_frames,
        with_audio=shots[0].sound is not None,
        samples=samples,
    ).save(folder)
    return folder


def save_validation(
    folder: Path, shots: Sequence[Shot], masks: Sequence[np.ndarray] | None = None
) -> Path:
    """The folder of clips that previews are made from."""
    folder.mkdir(parents=True)
    clips = tuple(
        ValidationClip(
            num_frames=len(shot.frames),
            **shot.save(folder, f"{number}", None if masks is None else masks[number]),
        )
        for number, shot in enumerate(shots)
    )
    ValidationManifest(clips=clips).save(folder)
    return folder


def make_validation_spec(prompts: tuple[str, ...] = (), **changes: Any) -> ValidationSpec:
    settings: dict[str, Any] = {
        "prompts": tuple(ValidationPrompt(prompt=prompt) for prompt in prompts),
        "negative_prompt": "blurry",
        "num_frames": NUM_FRAMES,
        "frame_rate": 24,
        "width": WIDTH,
        "height": HEIGHT,
        "num_inference_steps": 2,
        "at": (0.5, 1.0),
    }
    return ValidationSpec(**(settings | changes))


def make_spec(*, prompts: tuple[str, ...] = (), **changes: Any) -> TrainingSpec:
    settings: dict[str, Any] = {
        "training_type": "t2v",
        "rank": 8,
        "num_steps": 12,
        "learning_rate": 1e-3,
    }
    return TrainingSpec(**(settings | {"validation": make_validation_spec(prompts)} | changes))


def make_job(root: Path, dataset: Path, cache: Path, **changes: Any) -> JobDir:
    root.mkdir(parents=True)
    settings: dict[str, Any] = {
        "id": root.name,
        "spec": make_spec(),
        "dataset": dataset,
        "model": "tiny",
        "cache": cache,
        "checkpoint_every": 4,
        "device": "cpu",
    }
    directory = JobDir(root)
    directory.create(Job(**(settings | changes)))
    return directory


def read_events(directory: JobDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in directory.events.read_text().splitlines()]


def stages(directory: JobDir) -> list[str]:
    """Names of the stages that ended."""
    return [
        event["name"]
        for event in read_events(directory)
        if event["kind"] == "stage" and event["state"] == "end"
    ]
