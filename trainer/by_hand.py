"""``python -m trainer generate``: try a LoRA without a server, in every mode.

    python -m trainer generate --model tiny --prompt "..." --lora lora.safetensors:0.8 --out a.mp4
    python -m trainer generate --mode outpaint --source clip.mp4 --size 1280x720 ...

The source is prepared in a child process and the LoRAs are checked, as the service does it; then
the same job runs.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Final

import pydantic

from preprocessing.cli import EXIT_OK, EXIT_OUR_FAULT, EXIT_REFUSED, PrintedEvents
from preprocessing.rules import LATENT_STRIDE_FRAMES, SourceRule
from trainer.generation import (
    Encoding,
    ExtendPrefix,
    ExtendSuffix,
    GenerationSpec,
    Inpaint,
    LoraChoice,
    Outpaint,
    SafetyClassifier,
    Task,
    exact_frame_rate,
    source_rule,
)
from trainer.job import GenerateJob, JobDir
from trainer.process import ReleaseOnSigterm

EXIT_STOPPED: Final = 3
DEFAULT_CACHE: Final = Path("~/.cache/reelsmith/trainer")
MAX_SEED: Final = 2**32


def _suffix(given: argparse.Namespace) -> Task:
    count = given.conditioning_frames or LATENT_STRIDE_FRAMES
    if count % LATENT_STRIDE_FRAMES:
        raise ValueError(f"--conditioning-frames of a suffix are 8, 16, 24, ..., not {count}")
    return ExtendSuffix(num_latent_frames=count // LATENT_STRIDE_FRAMES, window=given.window)


def _prefix(given: argparse.Namespace) -> Task:
    count = given.conditioning_frames or LATENT_STRIDE_FRAMES + 1
    if count % LATENT_STRIDE_FRAMES != 1:
        raise ValueError(f"--conditioning-frames of a prefix are 9, 17, 25, ..., not {count}")
    return ExtendPrefix(num_latent_frames=count // LATENT_STRIDE_FRAMES + 1, window=given.window)


_TASKS: Final[Mapping[str, Callable[[argparse.Namespace], Task | None]]] = {
    "t2v": lambda given: None,
    "outpaint": lambda given: Outpaint(source_scale=given.source_scale),
    "inpaint": lambda given: Inpaint(),
    "extend-suffix": _suffix,
    "extend-prefix": _prefix,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", required=True)
    add("--out", type=Path, required=True, metavar="FILE.mp4")
    add("--model", default="tiny", help="a folder in diffusers layout, a hub id, or tiny (default)")
    add("--mode", choices=_TASKS, default="t2v")
    add("--source", type=Path, metavar="CLIP", help="what is given, in all modes but t2v")
    add("--mask", type=Path, help="inpaint: an image or a video, white is regenerated")
    add("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="up to three times")
    add("--size", type=_size, default=(768, 448), metavar="WxH", help="even (default 768x448)")
    add("--frames", type=int, default=89, help="of the result, any number (default 89)")
    add("--fps", type=float, default=24, help="frames per second; 23.976 is 24000/1001")
    add("--steps", type=int, default=15)
    add("--seed", type=int, help="default: drawn, and printed")
    add("--guidance", type=float, default=1.0, help="classifier-free; 1 is none and twice as fast")
    add("--negative", default="", help="what to avoid; read with --guidance")
    add("--strength", type=float, default=1.0, help="how firmly the source is held, 0 to 1")
    add("--source-scale", type=float, default=0.75, help="outpaint: of the largest that fits")
    add("--conditioning-frames", type=int, help="extend: frames given (default 8, or 9 in front)")
    add("--window", choices=["first", "last"], default="last", help="extend: which of the source's")
    add("--no-audio", action="store_true")
    add("--no-overlay", action="store_true", help="show what was given as the VAE decodes it")
    add("--quality", choices=["low", "medium", "high", "maximum"], default="high")
    add("--write-mode", choices=["fast", "balanced", "small"], default="balanced")
    add("--expand-prompt", action="store_true", help="let the text encoder write it in detail")
    add("--safety", type=Path, metavar="DIR", help="an image classifier's folder")
    add("--device", default="auto")
    add("--cache", type=Path, default=DEFAULT_CACHE, help=f"default {DEFAULT_CACHE}")
    add("--job-dir", type=Path, metavar="DIR", help="keep the job's files in this new folder")


def generate(given: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Exit status: 0 there is a video, 1 our fault, 2 something given can't be used, 3 stopped."""
    try:
        spec = _spec(given)
    except (ValueError, pydantic.ValidationError) as error:
        parser.error(str(error))
    rule = source_rule(spec)
    if (rule is None) != (given.source is None):
        parser.error(f"--mode {given.mode} {'takes no' if rule is None else 'needs a'} --source")
    with tempfile.TemporaryDirectory(prefix="reelsmith-") as temporary:
        root = given.job_dir or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        prepared = None
        if rule is not None:
            prepared = root / "source"
            code = _prepare(given, rule, prepared, root / "source-rule.json")
            if code != EXIT_OK:
                return code
        job = GenerateJob(
            id=given.out.stem,
            spec=spec,
            source=prepared and prepared.resolve(),
            safety=given.safety and SafetyClassifier(folder=given.safety.resolve()),
            model=given.model,
            cache=given.cache.expanduser().resolve(),
            device=given.device,
        )
        return _run(job, JobDir(root), given.out)


def _spec(given: argparse.Namespace) -> GenerationSpec:
    width, height = given.size
    return GenerationSpec(
        prompt=given.prompt,
        negative_prompt=given.negative,
        width=width,
        height=height,
        num_frames=given.frames,
        frame_rate=exact_frame_rate(given.fps),
        num_inference_steps=given.steps,
        guidance_scale=given.guidance,
        seed=random.randrange(MAX_SEED) if given.seed is None else given.seed,  # noqa: S311
        task=_TASKS[given.mode](given),
        strength=given.strength,
        with_audio=not given.no_audio,
        encoding=Encoding(quality=given.quality, write_mode=given.write_mode),
        soft_seam_pixels=None if given.no_overlay else 16,
        expand_prompt=given.expand_prompt,
        check_safety=given.safety is not None,
        loras=tuple(_lora(text) for text in given.lora),
    )


def _lora(text: str) -> LoraChoice:
    """``FILE`` or ``FILE:SCALE``; a file's name may have colons."""
    path, colon, scale = text.rpartition(":")
    if Path(text).exists() or not colon:
        path, scale = text, "1"
    if not Path(path).is_file():
        raise ValueError(f"--lora {text}: there is no file {path}")
    return LoraChoice(path=Path(path).resolve(), name=Path(path).name, scale=float(scale))


def _size(text: str) -> tuple[int, int]:
    """argparse turns the ValueError of other texts into its message."""
    width, height = (int(side) for side in text.lower().split("x"))
    return width, height


def _prepare(given: argparse.Namespace, rule: SourceRule, out: Path, spec: Path) -> int:
    """Read the foreign files where nothing else is; the child prints its own progress."""
    spec.write_text(rule.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "preprocessing", "source", str(given.source)]
    command += ["--spec", str(spec), "--out", str(out), "--name", given.source.name]
    if given.mask is not None:
        command += ["--mask", str(given.mask), "--mask-name", given.mask.name]
    return subprocess.run(command, check=False).returncode


def _run(job: GenerateJob, directory: JobDir, out: Path) -> int:
    directory.create(job)
    with ReleaseOnSigterm(directory.root):
        from trainer.run import ModelCache, run_job

        result = run_job(directory.root, ModelCache(), log=PrintedEvents)
    if result.status == "failed":
        print(f"failed: {result.error}", file=sys.stderr)
        return EXIT_REFUSED if result.users_fault else EXIT_OUR_FAULT
    if result.status != "completed":
        print(result.status, file=sys.stderr)
        return EXIT_STOPPED
    made = directory.generation_result()
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(directory.video, out)
    print(
        f"{out}: {made.width}x{made.height}, {made.num_frames} frames at "
        f"{_rate(made.frame_rate)} per second, seed {made.seed}"
    )
    return EXIT_OK


def _rate(rate: Fraction) -> str:
    return f"{float(rate):g}"
