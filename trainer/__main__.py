"""The trainer by hand: ``python -m trainer run JOB_DIR``, ``serve``, ``tiny DIR``, ``convert A B``.

On several GPUs: ``torchrun --standalone --nproc-per-node N -m trainer run JOB_DIR``.
"""

import argparse
import os
import sys
from pathlib import Path

from preprocessing.lifetime import PARENT_PID, die_with_parent
from trainer.process import ReleaseOnSigterm


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
    arguments = parser.parse_args()

    # torch is imported last: --help needs none, and signals should find their handlers in place.
    match arguments.command:
        case "run":
            return _run(arguments.job_dir)
        case "serve":
            started_by_torchrun = "RANK" in os.environ
            parent = None if started_by_torchrun else os.environ.get(PARENT_PID)
            die_with_parent(int(parent or os.getppid()))
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
    from trainer.follow import follow_jobs
    from trainer.parallel import NextJob, dismiss, join_group
    from trainer.run import ModelCache, choose_device, run_job

    group = join_group(choose_device("auto"))
    if not group.leads:
        return follow_jobs(group)
    with ReleaseOnSigterm(job_dir):
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


if __name__ == "__main__":
    sys.exit(main())
