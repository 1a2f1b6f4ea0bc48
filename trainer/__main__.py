"""The trainer by hand: ``python -m trainer run JOB_DIR``, ``generate ...``, ``check-lora FILE...``,
``tiny DIR``, ``convert A B``, and ``serve`` for the worker.

On several GPUs: ``torchrun --standalone --nproc-per-node N -m trainer run JOB_DIR``.
"""

import argparse
import os
import sys
from pathlib import Path

from preprocessing.cli import EXIT_OK, EXIT_REFUSED
from preprocessing.lifetime import PARENT_PID, die_with_parent
from trainer.by_hand import add_arguments
from trainer.by_hand import generate as by_hand
from trainer.job import write_atomically
from trainer.process import ReleaseOnSigterm, importing


def main() -> int:
    """Exit status of ``run``: 0 completed, 1 failed, 3 cancelled or released."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run one job; SIGTERM saves a checkpoint and stops")
    run.add_argument("job_dir", type=Path)
    commands.add_parser("serve", help="run jobs as JSON lines on stdin ask for them")
    tiny = commands.add_parser("tiny", help="build the tiny model into a folder")
    tiny.add_argument("folder", type=Path)
    convert = commands.add_parser(
        "convert", help="the official single file to a folder in diffusers layout, or back"
    )
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path)
    check = commands.add_parser("check-lora", help="say whether LoRA files can be used; no torch")
    check.add_argument("files", type=Path, nargs="+", metavar="FILE")
    check.add_argument("--name", action="append", help="what to call the files, in their order")
    check.add_argument("--model", type=Path, help="a model's folder that they must fit")
    check.add_argument("--out", type=Path, help="where the report goes, as JSON")
    generate = commands.add_parser("generate", help="make a video, with LoRAs, from text or a clip")
    add_arguments(generate)
    arguments = parser.parse_args()

    # torch is imported last: --help needs none, and signals should find their handlers in place.
    match arguments.command:
        case "run":
            return _run(arguments.job_dir)
        case "generate":
            return by_hand(arguments, generate)
        case "check-lora":
            die_with_parent()
            return _check_loras(arguments)
        case "serve":
            started_by_torchrun = "RANK" in os.environ
            parent = None if started_by_torchrun else os.environ.get(PARENT_PID)
            die_with_parent(int(parent or os.getppid()))
            with importing():
                from trainer.serve import serve

            return serve()
        case "convert":
            return _convert(arguments.source, arguments.target)
        case _:
            from trainer.tiny import build_tiny

            build_tiny(arguments.folder)
            return 0


def _convert(source: Path, target: Path) -> int:
    from trainer.errors import ModelError
    from trainer.single_file import to_folder, to_single_file

    try:
        if source.is_dir():
            to_single_file(source, target)
        else:
            target.mkdir(parents=True, exist_ok=True)
            to_folder(source, target)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(job_dir: Path) -> int:
    with ReleaseOnSigterm(job_dir):
        with importing():
            from trainer.follow import follow_jobs
            from trainer.model_cache import device_of
            from trainer.parallel import NextJob, dismiss, join_group
            from trainer.run import ModelCache, run_job

        group = join_group(device_of("auto"))
        if not group.leads:
            return follow_jobs(group)
        group.tell(NextJob(job_dir))
        result = run_job(job_dir, ModelCache(), group)
    if result.status != "failed":
        dismiss(group)
    print(f"{result.status} at step {result.step}", result.error or "", file=sys.stderr)
    match result.status:
        case "completed":
            return 0
        case "failed":
            return 1
        case _:
            return 3


def _check_loras(arguments: argparse.Namespace) -> int:
    """Exit status: 0 all can be used, 2 one is refused."""
    from trainer.lora_check import check_loras

    names = arguments.name or [path.name for path in arguments.files]
    report = check_loras(list(zip(names, arguments.files, strict=True)), arguments.model)
    if arguments.out:
        write_atomically(arguments.out, report.model_dump_json(indent=2))
    for facts in report.files:
        print(f"{facts.name}: {facts.description}")
    if report.problem is None:
        return EXIT_OK
    print(f"refused: {report.problem.message}", file=sys.stderr)
    return EXIT_REFUSED


if __name__ == "__main__":
    sys.exit(main())
