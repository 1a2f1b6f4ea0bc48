"""Prepare a dataset by hand, or as the worker's child process.

    python -m preprocessing ARCHIVE --spec spec.json --out DIR [--show strip.png]
    python -m preprocessing validation --spec clips.json --out DIR
    python -m preprocessing source CLIP [--mask FILE] --spec spec.json --out DIR
    python -m preprocessing probe VIDEO --out DIR
    python -m preprocessing show DIR --out strip.png
    python -m preprocessing debug DIR --out FILE.zip

``spec.json`` is a `preprocessing.rules.DatasetRule`, for a source a `SourceRule`; ``clips.json`` is
a `preprocessing.validation.ValidationJob`. The exit code is 0 when all is ready, 2 when the dataset
or a clip was refused (``DIR/report.json`` or ``DIR/problem.json`` says why), 1 when the fault is
not the dataset's.
"""

import argparse
import errno
import sys
from pathlib import Path
from typing import TypeVar

import pydantic

from preprocessing.cli import EXIT_DISK_FULL, EXIT_OK, EXIT_REFUSED, Parser, PrintedEvents
from preprocessing.debug_archive import write_debug_archive
from preprocessing.errors import DatasetError
from preprocessing.events import EVENTS_FILE, EventLog
from preprocessing.facts import find_facts
from preprocessing.lifetime import die_with_parent
from preprocessing.pool import available_cores
from preprocessing.prepare import prepare
from preprocessing.prepare_source import MASK_FIELD, VIDEO_FIELD, prepare_source
from preprocessing.rules import DatasetRule, SourceRule
from preprocessing.show import Keep, Rectangle, Window, write_strip
from preprocessing.validation import ValidationJob, prepare_validation

Spec = TypeVar("Spec", bound=pydantic.BaseModel)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. Faults of ours are raised."""
    try:
        return _run(arguments)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(error, file=sys.stderr)
        return EXIT_DISK_FULL


def _run(arguments: list[str]) -> int:
    match arguments:
        case ["validation", *rest]:
            return _validation(rest)
        case ["source", *rest]:
            return _source(rest)
        case ["probe", *rest]:
            return _probe(rest)
        case ["show", *rest]:
            return _show(rest)
        case ["debug", *rest]:
            return _debug(rest)
        case _:
            return _prepare(arguments)


def _prepare(arguments: list[str]) -> int:
    parser = Parser(prog="python -m preprocessing", description=__doc__.partition("\n")[0])
    parser.add_argument("archive", type=Path, help="a .zip or a folder of clips and captions")
    parser.add_argument("--spec", type=Path, required=True, help="DatasetRule as JSON")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared dataset")
    parser.add_argument("--processes", type=int, default=available_cores())
    parser.add_argument("--debug-archive", type=Path, help="also write playable samples as a zip")
    parser.add_argument("--show", type=Path, help="also draw a sample with its keep mask as a PNG")
    _add_keep(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    given = parser.parse_args(arguments)
    if given.processes < 1:
        parser.error(f"--processes must be at least 1, not {given.processes}")
    if not given.archive.exists():
        parser.error(f"there is no file or folder {given.archive}")
    rule = _read(given.spec, DatasetRule, parser)
    with _events(given.out, quiet=given.quiet) as events:
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
    if given.show:
        _draw(given.out, given.show, given, parser)
    return EXIT_OK


def _validation(arguments: list[str]) -> int:
    parser = Parser(prog="python -m preprocessing validation")
    parser.add_argument("--spec", type=Path, required=True, help="rule and clips as JSON")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared clips")
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    given = parser.parse_args(arguments)
    job = _read(given.spec, ValidationJob, parser)
    with _events(given.out, quiet=given.quiet) as events:
        try:
            prepare_validation(job.clips, job.rule, given.out, events)
        except DatasetError as error:
            print(f"refused: {error.message}", file=sys.stderr)
            return EXIT_REFUSED
    return EXIT_OK


def _source(arguments: list[str]) -> int:
    parser = Parser(prog="python -m preprocessing source")
    parser.add_argument("clip", type=Path, help="the video that a generation starts from")
    parser.add_argument("--mask", type=Path, help="an image or a video: white is regenerated")
    parser.add_argument("--spec", type=Path, required=True, help="SourceRule as JSON")
    parser.add_argument("--out", type=Path, required=True, help="folder for the prepared clip")
    parser.add_argument("--name", default=VIDEO_FIELD, help="what messages call the clip")
    parser.add_argument("--mask-name", default=MASK_FIELD, help="what messages call the mask")
    parser.add_argument("--quiet", action="store_true", help="no progress on the terminal")
    given = parser.parse_args(arguments)
    rule = _read(given.spec, SourceRule, parser)
    names = given.name, given.mask_name
    with _events(given.out, quiet=given.quiet) as events:
        try:
            prepare_source(given.clip, given.mask, rule, given.out, events, names=names)
        except DatasetError as error:
            print(f"refused: {error.message}", file=sys.stderr)
            return EXIT_REFUSED
    return EXIT_OK


def _probe(arguments: list[str]) -> int:
    parser = Parser(prog="python -m preprocessing probe")
    parser.add_argument("video", type=Path, help="the clip to look at")
    parser.add_argument("--out", type=Path, required=True, help="folder for facts.json")
    parser.add_argument("--field", default="video_url", help="the field that a refusal blames")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        facts = find_facts(given.video, given.field, given.out)
    except DatasetError as error:
        print(f"refused: {error.message}", file=sys.stderr)
        return EXIT_REFUSED
    print(facts.model_dump_json(indent=2))
    return EXIT_OK


def _show(arguments: list[str]) -> int:
    parser = Parser(prog="python -m preprocessing show")
    parser.add_argument("prepared", type=Path, help="a folder that a preparation wrote")
    parser.add_argument("--out", type=Path, required=True, help="the PNG to write")
    _add_keep(parser)
    given = parser.parse_args(arguments)
    _draw(given.prepared, given.out, given, parser)
    return EXIT_OK


def _debug(arguments: list[str]) -> int:
    parser = Parser(prog="python -m preprocessing debug")
    parser.add_argument("prepared", type=Path, help="a folder that a preparation wrote")
    parser.add_argument("--out", type=Path, required=True, help="the zip to write")
    given = parser.parse_args(arguments)
    write_debug_archive(given.prepared, given.out)
    return EXIT_OK


def _add_keep(parser: Parser) -> None:
    parser.add_argument("--sample", metavar="ID", help="the sample to draw, such as 0001")
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument(
        "--rectangle", type=_rectangle, metavar="L,T,R,B", help="given: pixels of the sample"
    )
    keep.add_argument("--suffix", type=int, metavar="N", help="given: the last N frames")
    keep.add_argument("--prefix", type=int, metavar="N", help="given: the first N frames")


def _rectangle(text: str) -> Rectangle:
    """ "L,T,R,B" in pixels; argparse turns the ValueError of other texts into its message."""
    left, top, right, bottom = (int(part) for part in text.split(","))
    return Rectangle(left, top, right, bottom)


def _draw(prepared: Path, out: Path, given: argparse.Namespace, parser: Parser) -> None:
    keep: Keep = given.rectangle
    if given.suffix is not None:
        keep = Window(given.suffix, at_end=True)
    elif given.prefix is not None:
        keep = Window(given.prefix, at_end=False)
    try:
        write_strip(prepared, out, keep, given.sample)
    except ValueError as error:
        parser.error(str(error))


def _events(out: Path, *, quiet: bool) -> EventLog:
    out.mkdir(parents=True, exist_ok=True)
    return (EventLog if quiet else PrintedEvents)(out / EVENTS_FILE)


def _read(spec: Path, kind: type[Spec], parser: Parser) -> Spec:
    try:
        return kind.model_validate_json(spec.read_bytes())
    except (OSError, pydantic.ValidationError) as error:
        parser.error(f"--spec {spec}: {error}")


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1:]))
