"""Prepare a dataset by hand, or as the worker's child process.

    python -m preprocessing ARCHIVE --spec spec.json --out DIR
    python -m preprocessing debug DIR --out FILE.zip

``spec.json`` is a `preprocessing.rules.DatasetRule`. The exit code is 0 when the dataset is ready,
2 when it was refused (``DIR/report.json`` says why), 1 when the fault is not the dataset's.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

import pydantic

from preprocessing.debug_archive import write_debug_archive
from preprocessing.errors import DatasetError
from preprocessing.events import EVENTS_FILE, EventLog
from preprocessing.lifetime import die_with_parent
from preprocessing.pool import available_cores
from preprocessing.prepare import prepare
from preprocessing.rules import DatasetRule

EXIT_OK = 0
EXIT_OUR_FAULT = 1
EXIT_REFUSED = 2


class _Parser(argparse.ArgumentParser):
    """argparse, but a wrong command line is not mistaken for a refused dataset."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_OUR_FAULT, f"{self.prog}: {message}\n")


class _PrintedEvents(EventLog):
    """Events for the file and, in short, for the person who waits."""

    def emit(self, kind: str, **fields: Any) -> None:
        super().emit(kind, **fields)
        match kind, fields:
            case "stage", {"state": "start", "name": name}:
                print(f"{name} ...", flush=True)
            case "stage", {"name": name, "seconds": seconds}:
                print(f"{name} done in {seconds:.1f} s", flush=True)
            case "progress", {"name": name, "done": done, "total": total}:
                print(f"{name} {done}/{total}", flush=True)
            case "log", {"level": level, "message": message} if level != "ERROR":
                print(message, flush=True)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Faults of ours are raised."""
    if arguments[:1] == ["debug"]:
        return _debug(arguments[1:])
    parser = _Parser(prog="python -m preprocessing", description=__doc__.partition("\n")[0])
    parser.add_argument("archive", type=Path, help="a .zip or a folder of clips and captions")
    parser.add_argument("--spec", type=Path, required=True, help="DatasetRule as JSON")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared dataset")
    parser.add_argument("--processes", type=int, default=available_cores())
    parser.add_argument("--debug-archive", type=Path, help="also write playable samples as a zip")
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    given = parser.parse_args(arguments)
    if given.processes < 1:
        parser.error(f"--processes must be at least 1, not {given.processes}")
    if not given.archive.exists():
        parser.error(f"there is no file or folder {given.archive}")
    rule = _rule(given.spec, parser)
    given.out.mkdir(parents=True, exist_ok=True)
    log = EventLog if given.quiet else _PrintedEvents
    with log(given.out / EVENTS_FILE) as events:
        try:
            report = prepare(given.archive, rule, given.out, events, processes=given.processes)
        except DatasetError as error:
            print(f"refused: {error.message}", file=sys.stderr)
            return EXIT_REFUSED
        if given.debug_archive:
            with events.stage("debug_archive"):
                write_debug_archive(given.out, given.debug_archive)
        totals = report.totals
        events.log(f"{totals.samples} samples from {totals.used} of {totals.clips} clips")
    return EXIT_OK


def _rule(spec: Path, parser: _Parser) -> DatasetRule:
    try:
        return DatasetRule.model_validate_json(spec.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        parser.error(f"--spec {spec}: {error}")


def _debug(arguments: list[str]) -> int:
    parser = _Parser(prog="python -m preprocessing debug")
    parser.add_argument("prepared", type=Path, help="a folder that a preparation wrote")
    parser.add_argument("--out", type=Path, required=True, help="the zip to write")
    given = parser.parse_args(arguments)
    write_debug_archive(given.prepared, given.out)
    return EXIT_OK


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1:]))
