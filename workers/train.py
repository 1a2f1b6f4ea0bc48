"""The train stage: from a prepared dataset to a checked LoRA in the store and a bill."""

import time
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from app.db.models import Stage
from app.requests import lifecycle
from app.requests.lifecycle import LeaseLost
from app.storage.errors import ObjectMissing
from preprocessing.manifest import MANIFEST_FILE, VALIDATION_FILE
from trainer.job import Control, Job, JobDir, Result
from workers.attempt import Attempt, Cancelled, Released, attempt_next
from workers.checkpoints import CheckpointStore, Uploader
from workers.children import POLL_S, EventTail, TrainerProcess
from workers.failures import our_fault, users_fault
from workers.files import file_entry, put_patiently
from workers.runtime import Runtime

log = structlog.get_logger()

STOP_TIMEOUT_S: Final = 120.0
"""For a trainer that was told to stop: a step, a checkpoint and some air; then it is killed."""

OUTPUTS: Final = (
    ("lora_file", "lora", "application/octet-stream"),
    ("config_file", "config", "application/json"),
    ("video", "reel", "video/mp4"),
    ("metrics_file", "metrics", "application/json"),
)
"""Field of the result, attribute of `JobDir`, content type. The reel is there when prompts were."""


def train_next(runtime: Runtime) -> bool:
    """Train the next prepared request. False: there was none."""
    return attempt_next(runtime, Stage.TRAIN, train)


def train(attempt: Attempt) -> None:
    """Run the job in the trainer child, store what it made, complete the request."""
    prepared = attempt.claim.prepared
    assert prepared is not None
    job_dir = JobDir(attempt.folder / "job")
    checkpoints = CheckpointStore(attempt.runtime.storage, attempt.key("checkpoints"))
    make_job(attempt, job_dir, checkpoints, prepared)
    uploader = Uploader(checkpoints, attempt.claim.attempt)
    try:
        result = supervise(attempt, job_dir, uploader)
    finally:
        uploader.close()
    end(attempt, result)
    attempt.forward.progress(stage="upload")
    attempt.forward.log("Storing the LoRA and the previews")
    attempt.forward.flush()
    body = store_outputs(attempt, job_dir)
    if "debug_dataset" in prepared:
        body["debug_dataset"] = prepared["debug_dataset"]
    units = attempt.mode.billable_units(attempt.request)
    with attempt.runtime.database.write() as session:
        lifecycle.complete(
            session, attempt.claim, body, units, round(time.monotonic() - attempt.started, 3)
        )
    log.info("attempt.completed", units=units)
    checkpoints.delete_all()


def make_job(
    attempt: Attempt, job_dir: JobDir, checkpoints: CheckpointStore, prepared: dict[str, Any]
) -> None:
    """Write the job directory; everything in it comes from the row and the store."""
    runtime = attempt.runtime
    dataset, validation = attempt.folder / "dataset", attempt.folder / "validation"
    try:
        runtime.storage.fetch_tree(prepared["key"], dataset, last=MANIFEST_FILE)
        if "validation" in prepared:
            runtime.storage.fetch_tree(prepared["validation"], validation, last=VALIDATION_FILE)
    except ObjectMissing as error:
        raise our_fault("The prepared dataset is gone from the store; submit it again.") from error
    resume_from = checkpoints.fetch_newest(attempt.folder / "resume")
    job_dir.root.mkdir()
    job_dir.create(
        Job(
            id=attempt.request_id,
            spec=attempt.mode.training_spec(attempt.request),
            dataset=dataset,
            validation_clips=validation if "validation" in prepared else None,
            model=runtime.settings.model,
            cache=runtime.cache,
            resume_from=resume_from,
            checkpoint_every=runtime.settings.checkpoint_every,
        )
    )


def supervise(attempt: Attempt, job_dir: JobDir, uploader: Uploader) -> Result | None:
    """Wait for the trainer, forwarding events. None: it answered, but left no result.

    A lost lease kills the trainer at once; a cancel or a stop of this worker is told to it, so
    that it saves a checkpoint first.
    """
    trainer = attempt.runtime.live_trainer()
    trainer.submit(job_dir.root)
    events = EventTail(job_dir.events)
    told_at: float | None = None
    try:
        while True:
            answered = trainer.answered()
            alive = trainer.alive
            handle_events(attempt, events, uploader)
            if answered:
                return job_dir.result()
            if not alive:
                died(attempt, trainer)
            try:
                attempt.check()
            except (Cancelled, Released) as stop:
                if told_at is None:
                    told_at = time.monotonic()
                    wish = Control.CANCEL if isinstance(stop, Cancelled) else Control.RELEASE
                    job_dir.tell(wish)
                elif time.monotonic() - told_at > STOP_TIMEOUT_S:
                    log.warning("trainer.did_not_stop")
                    raise
            time.sleep(POLL_S)
    except BaseException:
        attempt.runtime.drop_trainer()
        raise


def died(attempt: Attempt, trainer: TrainerProcess) -> NoReturn:
    """The child is gone without an answer."""
    code = trainer.process.returncode
    log.error("trainer.died", code=code, stderr=trainer.stderr_tail())
    attempt.runtime.drop_trainer()
    # Which of both the attempt ends as is told from what it was asked for.
    attempt.check()
    if code == -9:
        raise our_fault(
            "The training process was killed, most likely for the memory it used. "
            "Try a lower resolution, fewer frames or a lower rank.",
            error_type="worker_oom_or_killed",
        )
    raise our_fault("The training process crashed; nothing is billed.")


def handle_events(attempt: Attempt, events: EventTail, uploader: Uploader) -> None:
    """Forward events; checkpoints and previews go to the store on the way."""
    fresh = list(events.read())
    for event in fresh:
        if event["kind"] == "checkpoint":
            uploader.put(event["step"], Path(event["path"]))
        elif event["kind"] == "preview":
            event["file"] = store_preview(attempt, Path(event["path"]))
    attempt.forward.feed(fresh)


def store_preview(attempt: Attempt, path: Path) -> dict[str, Any] | None:
    """A preview as soon as it is there; one that can't be stored now is still in the reel."""
    try:
        stored = attempt.runtime.storage.put_file(
            attempt.key("previews", str(attempt.claim.attempt), path.name),
            path,
            content_type="video/mp4",
        )
    except Exception as error:
        log.warning("preview.not_stored", preview=path.name, error=repr(error))
        return None
    return file_entry(stored, path.name)


def end(attempt: Attempt, result: Result | None) -> None:
    """Returns for a completed job; every other end is raised."""
    if result is None:
        raise our_fault("The training process ended without a result; nothing is billed.")
    match result.status:
        case "completed":
            if attempt.lease.lost:
                raise LeaseLost(attempt.claim)
        case "cancelled":
            raise Cancelled
        case "released":
            raise Released
        case "failed":
            message = result.error or "The training failed."
            kind = result.error_type or "training_failed"
            log.warning("training.failed", error=message, error_type=kind, step=result.step)
            if result.users_fault:
                raise users_fault(message, error_type=kind, field="learning_rate")
            raise our_fault(message, error_type=kind)


def store_outputs(attempt: Attempt, job_dir: JobDir) -> dict[str, Any]:
    """Put the outputs under this attempt's own keys; the row makes them the request's."""

    def check() -> None:
        attempt.forward.feed(())
        attempt.check()

    body: dict[str, Any] = {}
    for name, part, content_type in OUTPUTS:
        path: Path = getattr(job_dir, part)
        if not path.exists():
            body[name] = None
            continue
        stored = put_patiently(
            attempt.runtime.storage,
            attempt.key("outputs", str(attempt.claim.attempt), path.name),
            path,
            content_type=content_type,
            check=check,
            say=attempt.forward.log,
        )
        body[name] = file_entry(stored, path.name)
    return body
