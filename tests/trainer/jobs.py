"""Small datasets and jobs for the trainer's tests, and the golden files."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor

from preprocessing.manifest import Audio, Manifest, Sample
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


def make_spec(*, prompts: tuple[str, ...] = (), **changes: Any) -> TrainingSpec:
    validation = ValidationSpec(
        prompts=tuple(ValidationPrompt(prompt=prompt) for prompt in prompts),
        negative_prompt="blurry",
        num_frames=NUM_FRAMES,
        frame_rate=24,
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=2,
        at=(0.5, 1.0),
    )
    settings = {"training_type": "t2v", "rank": 8, "num_steps": 12, "learning_rate": 1e-3}
    return TrainingSpec(**(settings | {"validation": validation} | changes))


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
