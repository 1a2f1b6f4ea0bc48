"""The train stage: from a prepared dataset to a checked LoRA in the store and a bill."""

import time
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, NoReturn

import structlog

from app.db.models import Stage
from app.requests import lifecycle
from app.requests.lifecycle import LeaseLost
from app.settings import Settings
from app.storage.errors import ObjectMissing
from preprocessing.manifest import MANIFEST_FILE, VALIDATION_FILE
from trainer.job import Control, Job, JobDir, Result
from trainer.plan import MachineSettings
from trainer.spec import TrainingSpec
from workers.attempt import Attempt, Cancelled, PreparedGone, Released, attempt_next
from workers.checkpoints import CheckpointStore, Uploader
from workers.children import POLL_S, EventTail, TrainerProcess
from workers.failures import our_fault, users_fault
from workers.files import file_entry, put_patiently
from workers.prepare import is_whole
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
    events = TrainingEvents(attempt, EventTail(job_dir.events), uploader)
    try:
        result = supervise(attempt, job_dir, events)
    finally:
        # Who lost the lease stores nothing more: the winner may have cleaned up already.
        uploader.close(abandon=attempt.lease.lost)
    events.forward()
    end(attempt, result)
    attempt.forward.progress(stage="upload")
    attempt.forward.log("Storing the LoRA and the previews")
    attempt.forward.feed((), at_once=True)
    body = store_outputs(attempt, job_dir)
    if "debug_dataset" in prepared:
        body["debug_dataset"] = prepared["debug_dataset"]
    units = attempt.mode.billable_units(attempt.request)
    seconds = round(time.monotonic() - attempt.started, 3)
    attempt.write(lambda s: lifecycle.complete(s, attempt.claim, body, units, seconds))
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
        if not is_whole(dataset):
            raise PreparedGone
        if "validation" in prepared:
            runtime.storage.fetch_tree(prepared["validation"], validation, last=VALIDATION_FILE)
    except ObjectMissing as error:
        raise PreparedGone from error
    resume_from = checkpoints.fetch_newest(attempt.folder / "resume")
    job_dir.root.mkdir()
    job_dir.create(
        Job(
            id=attempt.request_id,
            spec=_spec(attempt),
            dataset=dataset,
            validation_clips=validation if "validation" in prepared else None,
            model=runtime.settings.model,
            text_encoder=runtime.settings.text_encoder,
            cache=runtime.cache,
            resume_from=resume_from,
            checkpoint_every=runtime.settings.checkpoint_every,
            machine=_machine(runtime.settings),
            preview_share=runtime.settings.preview_share,
            claimed_at=time.time() - (time.monotonic() - attempt.started),
        )
    )


def _spec(attempt: Attempt) -> TrainingSpec:
    """The mode's, with what the operator decides."""
    spec: TrainingSpec = attempt.mode.training_spec(attempt.request)
    steps = attempt.runtime.settings.preview_steps
    validation = spec.validation.model_copy(update={"num_inference_steps": steps})
    return spec.model_copy(update={"validation": validation})


def _machine(settings: Settings) -> MachineSettings:
    return MachineSettings(
        precision=settings.base_precision,
        recomputed_blocks=settings.recomputed_blocks,
        offloaded_blocks=settings.offloaded_blocks,
        compile=settings.compile,
        attention=settings.attention,
    )


def supervise(attempt: Attempt, job_dir: JobDir, events: "TrainingEvents") -> Result | None:
    """Wait for the trainer, forwarding events. None: it answered, but left no result.

    A lost lease kills the trainer at once; a cancel or a stop of this worker is told to it, so
    that it saves a checkpoint first.
    """
    trainer = attempt.runtime.live_trainer()
    trainer.submit(job_dir.root)
    told_at: float | None = None
    try:
        while True:
            answered = trainer.answered()
            alive = trainer.alive
            events.forward()
            if answered:
                result = job_dir.result()
                if result is None or result.status == "failed":
                    # It may be about to leave, or CUDA may be broken: the next job gets a new one.
                    attempt.runtime.drop_trainer()
                return result
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


class TrainingEvents:
    """The trainer's events on their way to the database; files go to the store beside them."""

    def __init__(self, attempt: Attempt, tail: EventTail, uploader: Uploader) -> None:
        self._attempt = attempt
        self._tail = tail
        self._uploader = uploader
        self._stored: SimpleQueue[dict[str, Any]] = SimpleQueue()

    def forward(self) -> None:
        """What is new since the last call. A preview is told of once it can be looked at."""
        events = []
        for event in self._tail.read():
            if event["kind"] == "checkpoint":
                self._uploader.put_checkpoint(event["step"], Path(event["path"]))
            if event["kind"] == "preview":
                self._uploader.put(partial(self._store_preview, event))
            else:
                events.append(event)
        while not self._stored.empty():
            events.append(self._stored.get())
        self._attempt.forward.feed(events)

    def _store_preview(self, event: dict[str, Any]) -> None:
        path = Path(event["path"])
        stored = self._attempt.runtime.storage.put_file(
            self._attempt.key("previews", str(self._attempt.claim.attempt), path.name),
            path,
            content_type="video/mp4",
        )
        self._stored.put({**event, "file": file_entry(stored, path.name)})


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
                raise users_fault(message, error_type=kind, field=result.field or "")
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
