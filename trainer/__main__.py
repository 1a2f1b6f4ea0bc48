"""The trainer by hand: ``python -m trainer run JOB_DIR``, ``serve``, ``tiny DIR``."""

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
    arguments = parser.parse_args()

    # torch is imported last: --help needs none, and signals should find their handlers in place.
    match arguments.command:
        case "run":
            return _run(arguments.job_dir)
        case "serve":
            die_with_parent(int(os.environ.get(PARENT_PID) or os.getppid()))
            from trainer.serve import serve

            return serve()
        case _:
            from trainer.tiny import build_tiny

            build_tiny(arguments.folder)
            return 0


def _run(job_dir: Path) -> int:
    with ReleaseOnSigterm(job_dir):
        from trainer.run import ModelCache, run_job

        result = run_job(job_dir, ModelCache())
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
