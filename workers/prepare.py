"""The prepare stage of a training: from a URL to a prepared dataset, or a report of why not."""

import contextlib
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, Final

import structlog

from app.db.models import Purpose
from app.requests import lifecycle
from app.requests.estimate import DatasetFacts, estimate
from app.storage import Storage
from app.storage.errors import ObjectMissing
from preprocessing.events import EVENTS_FILE
from preprocessing.failpoints import reach
from preprocessing.manifest import MANIFEST_FILE, REPORT_FILE, VALIDATION_FILE, Manifest
from preprocessing.report import ArchiveFacts, DatasetReport, Problem, Refusal, Totals
from preprocessing.rules import DatasetRule, ValidationRule
from workers.attempt import Attempt
from workers.children import ChildProcess, EventTail
from workers.failures import Failure, our_fault
from workers.files import file_entry
from workers.inputs import download, refused, wait

log = structlog.get_logger()

PREPARED_FORMAT: Final = 4
"""Part of the cache key: raised when the same archive and rule prepare to something else."""


def prepare(attempt: Attempt) -> None:
    """Prepare, and leave a report also where the archive was never opened."""
    try:
        _prepare(attempt)
    except Failure as failure:
        report_of(attempt, failure)
        raise


def report_of(attempt: Attempt, failure: Failure) -> None:
    """A report that says only why, unless there is a better one."""
    storage, key = attempt.runtime.storage, attempt.key(REPORT_FILE)
    if failure.retryable or storage.stat(key) is not None:
        return
    rule = attempt.training.dataset_rule(attempt.request)
    DatasetReport(
        verdict="refused",
        problem=Problem(type=failure.error_type, message=failure.error, field=failure.field),
        archive=ArchiveFacts(size_bytes=0, sha256="", num_entries=0),
        settings=rule.model_dump(mode="json"),
        totals=Totals(clips=0, used=0, dropped=0, samples=0),
    ).save(attempt.folder)
    storage.put_file(key, attempt.folder / REPORT_FILE, content_type="application/json")


def _prepare(attempt: Attempt) -> None:
    """Download, prepare (or find it prepared), store dataset and report, queue for training.

    A check ends here, with the report as its result.
    """
    request = attempt.request
    prepared: dict[str, Any] = {}
    validation_rule = attempt.training.validation_rule(request)
    if validation_rule is not None:
        # First: it takes seconds, and a wrong URL should not wait for a large archive.
        prepared["validation"] = prepare_validation(attempt, validation_rule)
    rule = attempt.training.dataset_rule(request)
    archive = attempt.folder / "archive"
    download(attempt, request.training_data_url, archive, "training_data_url")
    reach("prepare.downloaded")
    key = prepared_key(archive, rule)
    dataset = attempt.folder / "dataset"
    storage = attempt.runtime.storage
    if fetch_prepared(storage, key, dataset):
        attempt.forward.log("This dataset was prepared before with the same settings; using that.")
        store_report(attempt, dataset)
    else:
        run_preparation(attempt, archive, rule, dataset)
        reach("prepare.prepared")
        attempt.check()
        storage.put_tree(key, dataset, last=MANIFEST_FILE)
    reach("prepare.stored")
    archive.unlink()
    prepared["key"] = key
    if request.debug_dataset:
        prepared["debug_dataset"] = store_debug_archive(attempt, dataset)
    attempt.forward.feed((), at_once=True)
    if attempt.claim.purpose == Purpose.CHECK:
        conclude_check(attempt, dataset, prepared)
    else:
        attempt.write(lambda session: lifecycle.advance(session, attempt.claim, prepared))
        log.info("attempt.prepared")


def conclude_check(attempt: Attempt, dataset: Path, prepared: dict[str, Any]) -> None:
    """Complete a check: a training would go on from here."""
    report, manifest = DatasetReport.load(dataset), Manifest.load(dataset)
    facts = DatasetFacts(num_frames=manifest.num_frames, with_audio=manifest.with_audio)
    with attempt.runtime.database.read() as session:
        expected = estimate(
            session, attempt.training, attempt.request, attempt.runtime.settings.model, facts
        )
    body: dict[str, Any] = {
        "ok": True,
        "samples": report.totals.samples,
        "warnings": [
            *report.warnings,
            *(f"{clip.name}: {text}" for clip in report.clips for text in clip.warnings),
        ],
        "report": report.model_dump(mode="json"),
        "estimate": expected.model_dump(mode="json"),
    }
    if "debug_dataset" in prepared:
        body["debug_dataset"] = prepared["debug_dataset"]
    seconds = round(time.monotonic() - attempt.started, 3)
    kept = {"key": prepared["key"]}
    attempt.write(
        lambda session: lifecycle.complete(session, attempt.claim, body, 0, seconds, prepared=kept)
    )
    log.info("attempt.checked", samples=report.totals.samples)
    if "validation" in prepared:
        attempt.runtime.storage.delete_tree(prepared["validation"])


def prepared_key(archive: Path, rule: DatasetRule) -> str:
    """Where this archive's prepared form belongs: its bytes and every setting that shapes it."""
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(f"\n{PREPARED_FORMAT}\n{rule.model_dump_json()}".encode())
    return f"prepared/{digest.hexdigest()}"


def fetch_prepared(storage: Storage, key: str, dataset: Path) -> bool:
    """Bring what was prepared before. False: nothing was, or a sweep took it away meanwhile."""
    if storage.stat(f"{key}/{MANIFEST_FILE}") is None:
        return False
    with contextlib.suppress(ObjectMissing):
        storage.fetch_tree(key, dataset, last=MANIFEST_FILE)
        if is_whole(dataset):
            return True
    # A rest with a manifest would stand in the way of the whole.
    storage.delete(f"{key}/{MANIFEST_FILE}")
    shutil.rmtree(dataset, ignore_errors=True)
    return False


def is_whole(dataset: Path) -> bool:
    """Whether every file that the manifest names is there."""
    names: list[str | None] = []
    for sample in Manifest.load(dataset).samples:
        audio = None if sample.audio is None else sample.audio.path
        names += [sample.frames, audio, sample.keep_mask]
    return all((dataset / name).exists() for name in names if name is not None)


def run_preparation(attempt: Attempt, archive: Path, rule: DatasetRule, dataset: Path) -> None:
    """Run `python -m preprocessing` and forward what it says. Raises `Failure` when it refuses."""
    spec = attempt.folder / "rule.json"
    spec.write_text(rule.model_dump_json())
    child = ChildProcess(
        "preprocessing",
        [str(archive), "--spec", str(spec), "--out", str(dataset)],
        attempt.folder,
    )
    events = EventTail(dataset / EVENTS_FILE)
    code = wait(attempt, child, events)
    if (dataset / REPORT_FILE).exists():
        store_report(attempt, dataset)
    if code == ChildProcess.REFUSED:
        problem = DatasetReport.load(dataset).problem
        assert problem is not None
        raise refused(problem)
    if code != 0:
        log.error("preparation.crashed", code=code, stderr=child.stderr_tail())
        raise our_fault("Preparing the dataset failed on our side; nothing is billed.")


def prepare_validation(attempt: Attempt, rule: ValidationRule) -> str:
    """Fetch and fit the clips that previews are made from; returns where they are stored."""
    folder = attempt.folder / "validation"
    folder.mkdir()
    clips = []
    for index, source in enumerate(attempt.training.validation_sources(attempt.request)):
        clip: dict[str, str | None] = {"video": None, "mask": None}
        for name, url in (("video", source.video_url), ("mask", source.mask_url)):
            if url is not None:
                path = folder / f"{index}-{name}"
                download(attempt, url, path, f"validation.{index}.{name}_url")
                clip[name] = str(path)
        clips.append(clip)
    spec, out = folder / "spec.json", folder / "prepared"
    spec.write_text(json.dumps({"rule": rule.model_dump(mode="json"), "clips": clips}))
    child = ChildProcess(
        "preprocessing", ["validation", "--spec", str(spec), "--out", str(out)], folder
    )
    code = wait(attempt, child, EventTail(out / EVENTS_FILE))
    if code == ChildProcess.REFUSED:
        raise refused(Refusal.load(out).problem)
    if code != 0:
        log.error("validation.crashed", code=code, stderr=child.stderr_tail())
        raise our_fault("Preparing the validation clips failed on our side; nothing is billed.")
    key = attempt.key("validation", str(attempt.claim.attempt))
    attempt.runtime.storage.put_tree(key, out, last=VALIDATION_FILE)
    return key


def store_report(attempt: Attempt, dataset: Path) -> None:
    attempt.runtime.storage.put_file(
        attempt.key(REPORT_FILE), dataset / REPORT_FILE, content_type="application/json"
    )


def store_debug_archive(attempt: Attempt, dataset: Path) -> dict[str, Any]:
    """Make and store the archive of the prepared data as playable files."""
    path = attempt.folder / "debug_dataset.zip"
    child = ChildProcess(
        "preprocessing", ["debug", str(dataset), "--out", str(path)], attempt.folder
    )
    if wait(attempt, child, EventTail(attempt.folder / "none")) != 0:
        log.error("debug_archive.crashed", stderr=child.stderr_tail())
        raise our_fault("Writing the debug dataset failed on our side; nothing is billed.")
    stored = attempt.runtime.storage.put_file(
        attempt.key("outputs", str(attempt.claim.attempt), path.name),
        path,
        content_type="application/zip",
    )
    return file_entry(stored, path.name)
