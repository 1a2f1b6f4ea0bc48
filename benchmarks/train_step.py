"""How long a training step takes, beside what the chip could do and beside plain diffusers.

    python -m benchmarks.train_step --model ltx-2.3-random --out benchmarks/results/train-step.md
    python -m benchmarks.train_step --model tiny --steps 2

Builds the transformer with random weights on the device and times whole updates (forward,
backward, clipping, AdamW) with CUDA events: one sample, rank 32, 89 frames. Rows come in the order
of their worth, and those that no time is left for are named at the end. The ceiling is a large
matrix product in the base's precision, measured in the same run; a row's share of it counts only
operations that a step can't do without (`flops.py`). ``reference`` is `reference_step.py`.
"""

import argparse
import gc
import importlib.metadata
import itertools
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.flops import count_flops
from benchmarks.random_model import CACHE, MODELS, build, make_example
from benchmarks.reference_step import ReferenceTrainer
from trainer.adapter import remove_adapter
from trainer.execution import compile_blocks
from trainer.flow import Draws, draw
from trainer.latents import VideoGeometry
from trainer.loop import Trainer
from trainer.plan import MachineSettings, Plan, Workload
from trainer.policy import first_plan
from trainer.spec import TrainingSpec, ValidationSpec

RANK: Final = 32
PRESETS: Final = {
    # name: frames, height, width (`ltx-training.md` 5.2); the first one is what the others are
    # measured by
    "medium 1:1": (89, 768, 768),
    "low 1:1": (89, 512, 512),
    "high 1:1": (89, 960, 960),
    "low 16:9": (89, 288, 512),
    "medium 16:9": (89, 448, 768),
    "high 16:9": (89, 544, 960),
    "high 1:1, 121 f": (121, 960, 960),
}
TINY_PRESETS: Final = {"tiny": (9, 64, 64)}
FULL, FP8, REFERENCE = "full", "fp8", "reference"


@dataclass(frozen=True)
class Case:
    """One row to be measured."""

    preset: str
    with_audio: bool
    kind: str
    """`FULL`, `FP8` or `REFERENCE`."""

    @property
    def needs_audio_weights(self) -> bool:
        return self.with_audio or self.kind == REFERENCE

    def __str__(self) -> str:
        return f"{self.preset}, {'joint' if self.with_audio else 'video'}, {self.kind}"


@dataclass(frozen=True)
class Measured:
    case: Case
    num_tokens: int
    seconds: float
    """Median of the steps."""
    spread: float
    """(slowest - fastest) / median"""
    tflops: float
    peak_bytes: int | None
    note: str


def cases(presets: list[str]) -> list[Case]:
    """The first preset in every way, then the others; grouped so that models are built seldom."""
    first, others = presets[0], presets[1:]
    return [
        Case(first, False, FULL),
        Case(first, False, FP8),
        Case(first, False, REFERENCE),
        Case(first, True, FULL),
        Case(first, True, REFERENCE),
        *(Case(preset, False, FULL) for preset in others),
        *(Case(preset, True, FULL) for preset in others),
        *(Case(preset, False, FP8) for preset in others),
        *(Case(preset, True, FP8) for preset in presets),
        *(Case(preset, audio, REFERENCE) for preset in others for audio in (False, True)),
    ]


class Bench:
    """One model at a time on one device."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.name: str = arguments.model
        self.presets = TINY_PRESETS if self.name == "tiny" else PRESETS
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.num_steps: int = arguments.steps
        self.num_warm_up: int = arguments.warm_up
        self.compile: Any = arguments.compile
        self.cache: Path = arguments.cache
        self._held: tuple[bool, str] | None = None
        self._transformer: Any = None

    def measure(self, case: Case) -> Measured:
        num_frames, height, width = self.presets[case.preset]
        geometry = VideoGeometry(num_frames, height, width, Fraction(24))
        transformer = self._model(case)
        example = make_example(transformer, geometry, self.device, with_audio=case.with_audio)
        draws = draw(example, torch.Generator().manual_seed(0))
        notes: list[str] = []
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if case.kind == REFERENCE:
            trainer: Any = ReferenceTrainer(transformer, RANK, with_audio=case.with_audio)
        else:
            trainer = self._trainer(case, transformer, geometry)
            trainer.prepare(example, notes.append)
            notes = [trainer.plan.describe(len(transformer.transformer_blocks)).split(":")[0]]
            if trainer.kernel:
                notes.append(f"attention by {trainer.kernel}")
        try:
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            seconds = self._times(lambda: trainer.update(example, draws))
            peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
            if case.kind != REFERENCE:
                notes.append(self._syncs(trainer, example))
        finally:
            if case.kind == REFERENCE:
                trainer.close()
            remove_adapter(transformer)
            compile_blocks(transformer, None)
            gc.collect()
        audio_tokens = 0 if example.audio is None else example.audio.tokens.shape[1]
        flops = count_flops(transformer, geometry.num_tokens, audio_tokens)
        median = statistics.median(seconds)
        return Measured(
            case,
            geometry.num_tokens,
            median,
            (max(seconds) - min(seconds)) / median,
            flops.step / median / 1e12,
            peak,
            "; ".join(notes),
        )

    def ceiling_tflops(self) -> float:
        """Of a square product in the base's precision: what the chip gives, not what is printed."""
        size = 8192 if self.device.type == "cuda" else 512
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in "ab")
        out = torch.empty_like(a)
        times = self._times(lambda: [torch.mm(a, b, out=out) for _ in range(10)])
        return 10 * 2 * size**3 / statistics.median(times) / 1e12

    def _trainer(self, case: Case, transformer: Any, geometry: VideoGeometry) -> Trainer:
        precision: Any = "fp8" if case.kind == FP8 else "full"
        machine = MachineSettings(precision=precision, compile=self.compile)
        work = Workload(geometry.num_tokens, RANK, case.with_audio)
        blocks = len(transformer.transformer_blocks)
        plan: Plan = first_plan(work, self.device, machine, blocks)
        spec = TrainingSpec(
            training_type="benchmark",
            rank=RANK,
            num_steps=1000,
            learning_rate=2e-4,
            validation=ValidationSpec(num_frames=9, frame_rate=24, width=64, height=64),
        )
        return Trainer(transformer, spec, with_audio=case.with_audio, machine=machine, plan=plan)

    def _model(self, case: Case) -> Any:
        """The one at hand where it serves; FP8 is made of a full one and never goes back."""
        wanted = (case.needs_audio_weights, FP8 if case.kind == FP8 else FULL)
        if self._held != wanted:
            if self._held != (wanted[0], FULL):
                self._transformer = None
                gc.collect()
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                self._transformer = build(self.name, self.device, self.dtype, with_audio=wanted[0])
            self._held = wanted
        return self._transformer

    def _times(self, run: Callable[[], Any]) -> list[float]:
        for _ in range(self.num_warm_up):
            run()
        if self.device.type != "cuda":
            times = []
            for _ in range(self.num_steps):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
            return times
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(self.num_steps + 1)]
        marks[0].record()
        for mark in marks[1:]:
            run()
            mark.record()
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(marks)]

    def _syncs(self, trainer: Trainer, example: Any) -> str:
        """One more step, with numbers drawn as in a training, under CUDA's own watch."""
        if self.device.type != "cuda":
            return "host syncs not watched on a CPU"
        trainer.update(example, self._drawn(trainer, example))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            trainer.update(example, self._drawn(trainer, example))
        except RuntimeError as error:
            return f"a step waits for the device: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return "no host sync in a step"

    def _drawn(self, trainer: Trainer, example: Any) -> Draws:
        return trainer.draws(example, trainer.step)


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """The report's lines, as they become known."""
    deadline = time.monotonic() + arguments.budget_s
    bench = Bench(arguments)
    yield f"# A training step, {bench.name}\n"
    yield f"`python -m benchmarks.train_step {shlex.join(arguments.given)}`\n"
    yield f"{device_name(bench.device)}, {versions()}\n"
    ceiling = bench.ceiling_tflops()
    precision = str(bench.dtype).removeprefix("torch.")
    yield f"Ceiling, a large matrix product in {precision}: {ceiling:.1f} TFLOP/s\n"
    columns = ("size", "tokens", "branches", "way", "s/step", "spread", "TFLOP/s")
    yield f"| {' | '.join(columns)} | of the ceiling | peak GB | |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    done: dict[Case, Measured] = {}
    left_out: list[str] = []
    longest = 0.0
    for case in cases(arguments.presets or list(bench.presets)):
        if case.kind not in arguments.kinds:
            continue
        started = time.monotonic()
        if started + longest >= deadline:
            left_out.append(str(case))
            continue
        try:
            row = bench.measure(case)
        except Exception as error:  # a row that fails must not cost the others
            left_out.append(f"{case} ({type(error).__name__}: {str(error).splitlines()[0]})")
            continue
        longest = max(longest, time.monotonic() - started)
        done[case] = row
        yield table_row(row, ceiling)
    yield ""
    yield from ratios(done, list(arguments.presets or bench.presets))
    if left_out:
        yield "\nNot measured: " + "; ".join(left_out)


def table_row(row: Measured, ceiling: float) -> str:
    peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e9:.1f}"
    branches = "joint" if row.case.with_audio else "video"
    return (
        f"| {row.case.preset} | {row.num_tokens} | {branches} | {row.case.kind} "
        f"| {row.seconds:.4f} | {row.spread:.0%} | {row.tflops:.4g} "
        f"| {row.tflops / ceiling:.1%} | {peak} | {row.note} |"
    )


def ratios(done: dict[Case, Measured], presets: list[str]) -> Iterator[str]:
    """What two rows of one size say together."""

    def compare(text: str, one: Case, other: Case) -> Iterator[str]:
        if one in done and other in done:
            yield f"- {text}: {done[one].seconds / done[other].seconds:.2f}"

    for preset in presets:
        for audio in (False, True):
            branches = "joint" if audio else "video"
            ours, reference = Case(preset, audio, FULL), Case(preset, audio, REFERENCE)
            yield from compare(f"{preset}, {branches}: reference / full", reference, ours)
            yield from compare(f"{preset}, {branches}: full / fp8", ours, Case(preset, audio, FP8))
        yield from compare(
            f"{preset}: joint / video", Case(preset, True, FULL), Case(preset, False, FULL)
        )


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info()
        return f"{torch.cuda.get_device_name()}, {total / 1e9:.0f} GB"
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def versions() -> str:
    names = ("torch", "diffusers", "peft", "triton")
    found = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join([f"Python {platform.python_version()}", *found, f"CUDA {torch.version.cuda}"])


def parse(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="ltx-2.3-random")
    parser.add_argument("--presets", nargs="+", metavar="PRESET", choices=list(PRESETS))
    parser.add_argument(
        "--kinds", nargs="+", choices=(FULL, FP8, REFERENCE), default=[FULL, FP8, REFERENCE]
    )
    parser.add_argument("--steps", type=int, default=5, help="measured, of each row")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--budget-s", type=float, default=540.0, help="no row begins after this")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where tiny is, or is built")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    arguments.given = given
    return arguments


def main(given: list[str]) -> int:
    arguments = parse(given)
    lines = []
    for line in run(arguments):
        print(line, flush=True)
        lines.append(line)
        if arguments.out is not None:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
