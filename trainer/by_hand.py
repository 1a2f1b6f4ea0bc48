"""``python -m trainer generate``: try a LoRA without a server, in every mode.

    python -m trainer generate --model tiny --prompt "..." --lora lora.safetensors:0.8 --out a.mp4
    python -m trainer generate --mode outpaint --source clip.mp4 --size 1280x720 ...

The source is prepared in a child process and the LoRAs are checked, as the service does it; then
the same job runs.
"""

import argparse
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

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
from trainer.process import ReleaseOnSigterm, importing

EXIT_STOPPED: Final = 3
DEFAULT_CACHE: Final = Path("~/.cache/reelsmith/trainer")
MAX_SEED: Final = 2**32
MIN_FPS: Final = 1.0
TEXT_ENCODER_VARIABLE: Final = "REELSMITH_TEXT_ENCODER"


def _suffix(given: argparse.Namespace) -> Task:
    count = given.conditioning_frames
    if count is None:
        count = LATENT_STRIDE_FRAMES
    if count % LATENT_STRIDE_FRAMES:
        raise ValueError(f"--conditioning-frames of a suffix are 8, 16, 24, ..., not {count}")
    return ExtendSuffix(num_latent_frames=count // LATENT_STRIDE_FRAMES, window=given.window)


def _prefix(given: argparse.Namespace) -> Task:
    count = given.conditioning_frames
    if count is None:
        count = LATENT_STRIDE_FRAMES + 1
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
_OPTIONS: Final = {
    "width": "--size",
    "height": "--size",
    "num_frames": "--frames",
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "num_latent_frames": "--conditioning-frames",
    "loras": "--lora",
    "scale": "--lora",
}
"""Fields of a spec whose option has another name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", required=True)
    add("--out", type=Path, required=True, metavar="FILE.mp4")
    add("--model", default="tiny", help="tiny (default), a folder, the official file, a hub id")
    add(
        "--text-encoder",
        type=Path,
        default=os.environ.get(TEXT_ENCODER_VARIABLE),
        metavar="DIR",
        help=f"Gemma 3, which the official file lacks (default: {TEXT_ENCODER_VARIABLE})",
    )
    add("--mode", choices=_TASKS, default="t2v")
    add("--source", type=Path, metavar="CLIP", help="what is given, in all modes but t2v")
    add("--mask", type=Path, help="inpaint: an image or a video, white is regenerated")
    add("--lora", action="append", default=[], metavar="FILE[:SCALE]", help="up to three times")
    add("--size", type=_size, default=(768, 448), metavar="WxH", help="even (default 768x448)")
    add("--frames", type=int, default=89, help="of the result, any number (default 89)")
    add("--fps", type=_fps, default=24, help="frames per second; 23.976 is 24000/1001")
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
        _check_paths(given, spec)
    except pydantic.ValidationError as error:
        parser.error("; ".join(map(_told, error.errors())))
    except ValueError as error:
        parser.error(str(error))
    rule = source_rule(spec)
    if rule is None and given.source is not None:
        print("At --strength 0 nothing of the source is kept, so it is not used.")
    with tempfile.TemporaryDirectory(prefix="reelsmith-") as temporary:
        try:
            return _make(given, spec, rule, given.job_dir or Path(temporary))
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return EXIT_STOPPED


def _make(
    given: argparse.Namespace, spec: GenerationSpec, rule: SourceRule | None, root: Path
) -> int:
    """Prepare the source and run the job in ``root``; returns the exit status."""
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
        text_encoder=given.text_encoder and given.text_encoder.expanduser().resolve(),
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


def _told(problem: Mapping[str, Any]) -> str:
    """One thing wrong with the spec, by the option it came from."""
    field = next(str(part) for part in reversed(problem["loc"]) if isinstance(part, str))
    option = _OPTIONS.get(field, f"--{field.replace('_', '-')}")
    return f"{option}: {problem['msg']} (given: {problem['input']})"


def _check_paths(given: argparse.Namespace, spec: GenerationSpec) -> None:
    """Whether all is there, before anything takes time. Raises `ValueError`."""
    if (spec.task is None) != (given.source is None):
        raise ValueError(
            f"--mode {given.mode} {'takes no' if given.source else 'needs a'} --source"
        )
    if isinstance(spec.task, Inpaint) != (given.mask is not None):
        raise ValueError(f"--mode {given.mode} {'takes no' if given.mask else 'needs a'} --mask")
    for option, path in (("--source", given.source), ("--mask", given.mask)):
        if path is not None and not path.is_file():
            raise ValueError(f"{option}: there is no file {path}")
    if given.job_dir is not None and given.job_dir.exists() and any(given.job_dir.iterdir()):
        raise ValueError(f"--job-dir: {given.job_dir} holds other files; name a new folder")
    try:
        given.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: {given.out.parent} can't be made: {error.strerror}") from error
    if given.out.is_dir() or not os.access(given.out.parent, os.W_OK):
        raise ValueError(f"--out: no file can be written at {given.out}")


def _lora(text: str) -> LoraChoice:
    """``FILE`` or ``FILE:SCALE``; a file's name may have colons."""
    path, colon, scale = text.rpartition(":")
    if Path(text).exists() or not colon:
        path, scale = text, "1"
    if not Path(path).is_file():
        raise ValueError(f"--lora {text}: there is no file {path}")
    try:
        factor = float(scale)
    except ValueError:
        raise ValueError(f"--lora {text}: {scale!r} is no scale; write {path}:0.8") from None
    return LoraChoice(path=Path(path).resolve(), name=Path(path).name, scale=factor)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"write it as 1280x720, not {text!r}") from None
    return width, height


def _fps(text: str) -> float:
    """argparse turns the ValueError of other texts into its message."""
    rate = float(text)
    if not MIN_FPS <= rate < math.inf:
        raise argparse.ArgumentTypeError(f"at least {MIN_FPS:g} frame per second, not {text}")
    return rate


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
        with importing():
            from trainer.run import ModelCache, run_job

        result = run_job(directory.root, ModelCache(), log=PrintedEvents)
    if result.status == "failed":
        print(f"failed: {result.error}", file=sys.stderr)
        return EXIT_REFUSED if result.users_fault else EXIT_OUR_FAULT
    if result.status != "completed":
        print(result.status, file=sys.stderr)
        return EXIT_STOPPED
    made = directory.generation_result()
    shutil.copyfile(directory.video, out)
    print(
        f"{out}: {made.width}x{made.height}, {made.num_frames} frames at "
        f"{_rate(made.frame_rate)} per second, seed {made.seed}"
    )
    return EXIT_OK


def _rate(rate: Fraction) -> str:
    return f"{float(rate):g}"
