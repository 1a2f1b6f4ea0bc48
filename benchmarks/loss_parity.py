"""Whether every way to run a training gives the losses of the plain one.

    python -m benchmarks.loss_parity --out benchmarks/results/loss-parity-tiny.md
    python -m benchmarks.loss_parity --model ltx-2.3-4-layers --steps 30    # on a GPU

Each way trains the same adapter from the same seeds on the same samples. Compared is what
happens to the loss at each step, beside the plain way: fp32, eager, everything kept.
"""

import argparse
import gc
import shlex
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from benchmarks.random_model import CACHE, MODELS, build, make_example
from benchmarks.train_step import device_name, versions
from trainer.execution import compile_blocks
from trainer.latents import VideoGeometry
from trainer.loop import Trainer
from trainer.plan import Plan
from trainer.quantised import Precision
from trainer.spec import TrainingSpec, ValidationSpec

RANK: Final = 8
NUM_SAMPLES: Final = 3
GEOMETRIES: Final = {"tiny": VideoGeometry(17, 64, 96, Fraction(24))}
LARGE: Final = VideoGeometry(25, 512, 512, Fraction(24))


@dataclass(frozen=True)
class Way:
    """How a training is run."""

    name: str
    dtype: torch.dtype = torch.float32
    precision: Precision = "full"
    recomputed: bool = False
    offloaded: bool = False
    compiled: bool = False


WAYS: Final = (
    Way("eager fp32"),
    Way("recomputed", recomputed=True),
    Way("offloaded", recomputed=True, offloaded=True),
    Way("compiled", compiled=True),
    Way("bf16", dtype=torch.bfloat16),
    Way("bf16, compiled", dtype=torch.bfloat16, compiled=True),
    Way("fp8", dtype=torch.bfloat16, precision="fp8"),
    Way("fp8, compiled", dtype=torch.bfloat16, precision="fp8", compiled=True),
    Way("int8", dtype=torch.bfloat16, precision="int8"),
)


@dataclass(frozen=True)
class Run:
    losses: list[float]
    adapter: Tensor
    """All its numbers in a row, on the CPU."""


def train(way: Way, arguments: argparse.Namespace, device: torch.device) -> Run:
    torch.compiler.reset()
    transformer = build(
        arguments.model, device, way.dtype, with_audio=arguments.joint, cache=arguments.cache
    )
    geometry = GEOMETRIES.get(arguments.model, LARGE)
    num_blocks = len(transformer.transformer_blocks)
    spec = TrainingSpec(
        training_type="parity",
        rank=RANK,
        num_steps=arguments.steps,
        learning_rate=1e-3,
        validation=ValidationSpec(num_frames=9, frame_rate=24, width=64, height=64),
    )
    plan = Plan(
        way.precision,
        num_recomputed=num_blocks * way.recomputed,
        num_offloaded=num_blocks * way.offloaded,
    )
    trainer = Trainer(transformer, spec, with_audio=arguments.joint, plan=plan)
    if way.compiled:
        compile_blocks(transformer, arguments.backend)
    kept = geometry.num_tokens // 4
    examples = [
        make_example(
            transformer, geometry, device, with_audio=arguments.joint, num_kept=kept, seed=seed
        )
        for seed in range(NUM_SAMPLES)
    ]
    losses = [trainer.update(examples[step % NUM_SAMPLES])[0] for step in range(arguments.steps)]
    adapter = torch.cat([tensor.flatten().cpu() for tensor in trainer.adapter().values()])
    result = Run(torch.stack(losses).tolist(), adapter)
    del trainer, transformer
    gc.collect()
    return result


def run(arguments: argparse.Namespace) -> Iterator[str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    branches = "with sound" if arguments.joint else "video alone"
    yield f"# Losses of every way, {arguments.model}, {branches}, {arguments.steps} steps\n"
    yield f"`python -m benchmarks.loss_parity {shlex.join(arguments.given)}`\n"
    yield f"{device_name(device)}, {versions()}; compiled by {arguments.backend}\n"
    yield "| way | first loss | last loss | largest difference | mean difference | adapter |"
    yield "|---|---|---|---|---|---|"
    plain: Run | None = None
    for way in WAYS:
        if way.name not in arguments.ways:
            continue
        done = train(way, arguments, device)
        plain = plain or done
        differences = [
            abs(ours - theirs) / abs(theirs)
            for ours, theirs in zip(done.losses, plain.losses, strict=True)
        ]
        likeness = torch.nn.functional.cosine_similarity(
            done.adapter.double(), plain.adapter.double(), dim=0
        ).item()
        yield (
            f"| {way.name} | {done.losses[0]:.5f} | {done.losses[-1]:.5f} "
            f"| {max(differences):.2e} | {statistics.mean(differences):.2e} | {likeness:.6f} |"
        )
    yield "\nDifferences are relative; `adapter` is the cosine between the trained adapters."


def main(given: list[str]) -> int:
    names = [way.name for way in WAYS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--joint", action="store_true", help="with sound")
    parser.add_argument("--ways", nargs="+", choices=names, default=names)
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where tiny is, or is built")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(given)
    arguments.given = given
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
