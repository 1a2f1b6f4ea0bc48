"""Many datasets through the preparation, one after another in one child process.

What runs is `python -m preprocessing`'s own `main`, in a process started as the worker starts it
(`workers.children.bare_environment`); only the start of the interpreter is shared, which would
otherwise be most of the time. Each dataset has its own account: exit code, seconds, peak memory.
"""

import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from preprocessing import __main__ as preprocessing
from preprocessing.cli import EXIT_OK, EXIT_REFUSED
from preprocessing.lifetime import die_with_parent
from preprocessing.report import DatasetReport
from preprocessing.rules import DatasetRule
from tests.hostile.costs import forget_peak, peak_bytes
from workers.children import bare_environment

LIMIT_S = 200
"""For a whole batch."""


@dataclass(frozen=True)
class Job:
    """One dataset: ``archive`` is a file, ``out`` a folder that does not exist yet."""

    id: str
    archive: Path
    out: Path
    rule: DatasetRule


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    id: str
    code: int
    seconds: float
    peak_bytes: int
    crash: str = ""
    """Traceback of an exception that escaped: a fault of ours."""


@dataclass(frozen=True)
class Prepared:
    """An outcome and what it left on the disk."""

    job: Job
    outcome: Outcome

    @property
    def report(self) -> DatasetReport:
        return DatasetReport.load(self.job.out)

    @property
    def files(self) -> set[str]:
        """Names of everything in the job's folder, files in folders included."""
        found = (path for path in self.job.out.rglob("*") if path.is_file())
        return {str(path.relative_to(self.job.out)) for path in found}

    def refused(self) -> str:
        """The message, after checks that hold for every refusal."""
        assert (self.outcome.code, self.outcome.crash) == (EXIT_REFUSED, "")
        assert self.files == {"report.json", "events.jsonl"}, "nothing is left behind"
        assert self.report.verdict == "refused"
        problem = self.report.problem
        assert problem is not None
        assert problem.message.isprintable(), "one line, no escapes"
        assert len(problem.message) < 1000
        assert str(self.job.out.parent) not in problem.message
        for line in (self.job.out / "events.jsonl").read_bytes().splitlines():
            json.loads(line)
        return problem.message

    def accepted(self) -> DatasetReport:
        assert (self.outcome.code, self.outcome.crash) == (EXIT_OK, ""), self.report.problem
        assert self.report.verdict == "ok"
        return self.report


def prepare_all(jobs: Sequence[Job], folder: Path) -> dict[str, Prepared]:
    """Run ``jobs`` in a child, in order. ``folder`` takes its notes."""
    given, found = folder / "jobs.json", folder / "outcomes.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for job in jobs:
        spec = folder / f"{len(lines)}.json"
        spec.write_text(job.rule.model_dump_json())
        arguments = [str(job.archive), "--spec", str(spec), "--out", str(job.out)]
        lines.append({"id": job.id, "arguments": [*arguments, "--processes", "1", "--quiet"]})
    given.write_text(json.dumps(lines))
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.preparing", str(given), str(found)],
        env={**bare_environment(), "PYTHONPATH": root},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = [Outcome(**json.loads(line)) for line in found.read_text().splitlines()]
    assert [outcome.id for outcome in outcomes] == [job.id for job in jobs]
    return {job.id: Prepared(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)}


def _run(id: str, arguments: list[str]) -> Outcome:
    forget_peak()
    started, crash, code = time.perf_counter(), "", 1
    try:
        code = preprocessing.main(arguments)
    except Exception:
        crash = traceback.format_exc()
    seconds = time.perf_counter() - started
    return Outcome(id, code, seconds, max(peak_bytes(), _children_peak_bytes()), crash)


def _children_peak_bytes() -> int:
    """Of the largest child so far: an upper bound for the job's own."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def main(given: str, found: str) -> None:
    jobs: list[dict[str, Any]] = json.loads(Path(given).read_text())
    with Path(found).open("a") as out:
        for job in jobs:
            out.write(json.dumps(asdict(_run(job["id"], job["arguments"]))) + "\n")
            out.flush()
    assert not os.environ.get("REELSMITH_DATABASE_URL"), "the child has no secrets"


if __name__ == "__main__":
    die_with_parent()
    main(*sys.argv[1:])
