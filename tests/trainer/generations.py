"""Generations on the tiny model and real clips, for tests: jobs, and what they left."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from preprocessing.events import EventLog
from preprocessing.prepare_source import prepare_source
from tests.trainer.jobs import read_events
from trainer.generation import (
    Encoding,
    GenerationSpec,
    source_rule,
)
from trainer.job import GenerateJob, JobDir
from trainer.mp4 import to_rgb
from trainer.run import ModelCache, run_job

RATE = Fraction(24)
NTSC = Fraction(24000, 1001)


@dataclass
class Runner:
    """Runs jobs that differ in what a test is about, and looks at what they left."""

    root: Path
    cache: Path
    models: ModelCache
    jobs: int = 0

    def spec(self, **changes: Any) -> GenerationSpec:
        plain: dict[str, Any] = {
            "prompt": "a rabbit on a meadow",
            "width": 96,
            "height": 64,
            "num_frames": 9,
            "frame_rate": RATE,
            "num_inference_steps": 2,
            "seed": 5,
            "with_audio": False,
            "encoding": Encoding(quality="maximum", write_mode="fast"),
        }
        return GenerationSpec(**(plain | changes))

    def job(
        self, spec: GenerationSpec, clip: Path | None = None, mask: Path | None = None, **more: Any
    ) -> JobDir:
        self.jobs += 1
        root = self.root / str(self.jobs)
        root.mkdir()
        rule, source = source_rule(spec), None
        if rule is not None:
            assert clip is not None
            source = root / "source"
            with EventLog(root / "source-events.jsonl") as events:
                prepare_source(clip, mask, rule, source, events)
        directory = JobDir(root)
        directory.create(
            GenerateJob(
                id="job",
                spec=spec,
                source=source,
                model="tiny",
                cache=self.cache,
                device="cpu",
                **more,
            )
        )
        return directory

    def run(
        self, spec: GenerationSpec, clip: Path | None = None, mask: Path | None = None, **more: Any
    ) -> JobDir:
        directory = self.job(spec, clip, mask, **more)
        result = run_job(directory.root, self.models)
        assert result.status == "completed", result
        assert result.step == spec.num_inference_steps
        return directory


@dataclass(frozen=True)
class Played:
    """What a player shows."""

    frames: NDArray[np.uint8]
    rate: Fraction
    sound: NDArray[np.float32] | None


def played(path: Path) -> Played:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([to_rgb(frame) for frame in container.decode(video=0)])
        rate = Fraction(stream.average_rate)
    sound = None
    with av.open(str(path)) as container:
        if container.streams.audio:
            parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
            sound = np.concatenate(parts, axis=1)
    return Played(frames, rate, sound)


def logged(directory: JobDir) -> list[str]:
    return [event["message"] for event in read_events(directory) if event["kind"] == "log"]


def psnr(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Of the luma, in dB: 4:2:0 halves the colours of pictures as small as these."""
    error = float(np.square((found.astype(float) - expected) @ [0.2126, 0.7152, 0.0722]).mean())
    return 10 * np.log10(255**2 / max(error, 1e-9))
