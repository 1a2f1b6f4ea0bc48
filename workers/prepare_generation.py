"""The prepare stage of a generation: source and LoRAs into the store, or a report of why not."""

import hashlib
import time
from pathlib import Path
from typing import Any, Final

import structlog
from pydantic import BaseModel, ConfigDict

from app.db.models import Purpose
from app.modes.canvas import Canvas, like
from app.requests import lifecycle
from app.requests.estimate_generation import estimate_generation
from app.requests.files import REPORT_FILE
from preprocessing.events import EVENTS_FILE
from preprocessing.facts import FACTS_FILE
from preprocessing.manifest import SOURCE_FILE, FrameRate, Placement, SourceManifest
from preprocessing.report import Problem, Refusal, VideoFacts
from preprocessing.rules import SourceRule
from trainer.generation import num_result_frames, source_rule
from trainer.lora_check import LoraFacts
from workers import loras
from workers.attempt import Attempt
from workers.children import ChildProcess, EventTail
from workers.failures import Failure, our_fault
from workers.inputs import download, refused, wait

log = structlog.get_logger()

SOURCE_FORMAT: Final = 1
"""Part of the cache key: raised when the same clip and rule prepare to something else."""
SOURCE_FIELD: Final = "video_url"


class CanvasSize(BaseModel):
    width: int
    height: int


class Given(BaseModel):
    """What the model is given of the source."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    placement: Placement
    num_frames: int
    frame_rate: FrameRate
    notes: tuple[str, ...]
    """What was done to it that its user might not expect."""

    @classmethod
    def of(cls, manifest: SourceManifest) -> "Given":
        return cls(**{name: getattr(manifest, name) for name in cls.model_fields})


class SourceReport(BaseModel):
    """``report.json`` of a generation: what its files are, or which one is refused and why."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    version: int = 1
    verdict: str = "ok"
    problem: Problem | None = None
    facts: VideoFacts | None = None
    """Of the source, where they were asked for."""
    canvas: CanvasSize | None = None
    source: Given | None = None
    """None: nothing of it."""
    loras: list[LoraFacts] = []


def prepare(attempt: Attempt) -> None:
    """Fetch, check and store; queue for the GPU. A check ends here, with the report."""
    report = SourceReport()
    try:
        prepared = _prepare(attempt, report)
    except Failure as failure:
        if not failure.retryable:
            report.verdict = "refused"
            report.problem = Problem(
                type=failure.error_type, message=failure.error, field=failure.field
            )
            store_report(attempt, report)
        raise
    store_report(attempt, report)
    attempt.forward.feed((), at_once=True)
    if attempt.claim.purpose == Purpose.CHECK:
        conclude_check(attempt, report, prepared)
    else:
        attempt.write(lambda session: lifecycle.advance(session, attempt.claim, prepared))
        log.info("attempt.prepared", loras=len(report.loras))


def _prepare(attempt: Attempt, report: SourceReport) -> dict[str, Any]:
    """What the GPU stage needs to know. Fills in the report as far as it gets."""
    mode, request = attempt.generation, attempt.request
    path = attempt.folder / "source"
    download(attempt, mode.source_url(request), path, SOURCE_FIELD)
    canvas = mode.canvas(request)
    if canvas is None or attempt.claim.purpose == Purpose.CHECK:
        report.facts = probe(attempt, path)
        canvas = canvas or like(report.facts.width, report.facts.height)
    report.canvas = CanvasSize(width=canvas.width, height=canvas.height)
    prepared: dict[str, Any] = {"canvas": report.canvas.model_dump()}
    rule = source_rule(mode.generation_spec(request, canvas, 0, ()))
    if rule is None:
        attempt.forward.log("Nothing of the source is kept, so it is not used.", "WARN")
    else:
        prepared["key"], manifest = prepare_source(attempt, path, rule)
        report.source = Given.of(manifest)
    path.unlink()
    found = []
    for index, lora in enumerate(request.loras):
        stored, facts = loras.prepare(attempt, index, lora)
        found.append(stored.model_dump(mode="json"))
        report.loras.append(facts)
        attempt.check()
    prepared["loras"] = found
    return prepared


def prepare_source(attempt: Attempt, path: Path, rule: SourceRule) -> tuple[str, SourceManifest]:
    """Fit the clip at ``path``, or find it fitted before; returns where it is stored."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(f"\nsource {SOURCE_FORMAT}\n{rule.model_dump_json()}".encode())
    key = f"prepared/{digest.hexdigest()}"
    storage, folder = attempt.runtime.storage, attempt.folder / "fitted"
    if storage.stat(f"{key}/{SOURCE_FILE}") is not None:
        attempt.forward.log("This source was prepared before with the same settings; using that.")
        folder.mkdir()
        storage.fetch(f"{key}/{SOURCE_FILE}", folder / SOURCE_FILE)
        return key, SourceManifest.load(folder)
    spec = attempt.folder / "source-rule.json"
    spec.write_text(rule.model_dump_json())
    run(attempt, ["source", str(path), "--spec", str(spec)], folder)
    storage.put_tree(key, folder, last=SOURCE_FILE)
    return key, SourceManifest.load(folder)


def probe(attempt: Attempt, path: Path) -> VideoFacts:
    """What the source is. Raises `Failure`."""
    folder = attempt.folder / "facts"
    run(attempt, ["probe", str(path), "--field", SOURCE_FIELD], folder)
    return VideoFacts.model_validate_json((folder / FACTS_FILE).read_bytes())


def run(attempt: Attempt, arguments: list[str], out: Path) -> None:
    """Run `python -m preprocessing`. Raises `Failure` when it refuses the clip."""
    child = ChildProcess("preprocessing", [*arguments, "--out", str(out)], attempt.folder)
    code = wait(attempt, child, EventTail(out / EVENTS_FILE))
    if code == ChildProcess.REFUSED:
        raise refused(Refusal.load(out).problem)
    if code != 0:
        log.error("source.crashed", code=code, stderr=child.stderr_tail())
        raise our_fault("Preparing the source failed on our side; nothing is billed.")


def conclude_check(attempt: Attempt, report: SourceReport, prepared: dict[str, Any]) -> None:
    """Complete a check: a generation would go on from here."""
    assert report.canvas is not None
    canvas = Canvas(report.canvas.width, report.canvas.height)
    num_frames = None
    if report.source is not None:
        spec = attempt.generation.generation_spec(attempt.request, canvas, 0, ())
        num_frames = num_result_frames(spec, report.source.num_frames)
    with attempt.runtime.database.read() as session:
        expected = estimate_generation(
            session,
            attempt.generation,
            attempt.request,
            attempt.runtime.settings.model,
            canvas,
            num_frames,
        )
    body = {
        "ok": True,
        "notes": [] if report.source is None else list(report.source.notes),
        "report": report.model_dump(mode="json"),
        "estimate": expected.model_dump(mode="json"),
    }
    seconds = round(time.monotonic() - attempt.started, 3)
    attempt.write(
        lambda session: lifecycle.complete(
            session, attempt.claim, body, 0, seconds, prepared=prepared
        )
    )
    log.info("attempt.checked", loras=len(report.loras))


def store_report(attempt: Attempt, report: SourceReport) -> None:
    path = attempt.folder / REPORT_FILE
    path.write_text(report.model_dump_json(indent=2), encoding="utf-8")
    attempt.runtime.storage.put_file(
        attempt.key(REPORT_FILE), path, content_type="application/json"
    )
