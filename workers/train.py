"""The train stage: from a prepared dataset to a checked LoRA in the store and a bill."""

import time
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

from app.settings import Settings
from app.storage.errors import ObjectMissing
from preprocessing.failpoints import reach
from preprocessing.manifest import MANIFEST_FILE, VALIDATION_FILE
from trainer.job import Job, JobDir
from trainer.plan import MachineSettings
from trainer.spec import TrainingSpec
from workers.attempt import Attempt, PreparedGone
from workers.checkpoints import CheckpointStore, Uploader
from workers.children import EventTail
from workers.files import file_entry
from workers.gpu import Output, complete, end, store_outputs, supervise
from workers.prepare import is_whole

OUTPUTS: Final[tuple[Output, ...]] = (
    ("lora_file", "lora", "application/octet-stream"),
    ("config_file", "config", "application/json"),
    ("video", "reel", "video/mp4"),
    ("metrics_file", "metrics", "application/json"),
)
"""The reel is there when prompts were."""


def train(attempt: Attempt) -> None:
    """Run the job in the trainer child, store what it made, complete the request."""
    prepared = attempt.claim.prepared
    assert prepared is not None
    job_dir = JobDir(attempt.folder / "job")
    checkpoints = CheckpointStore(attempt.runtime.storage, attempt.key("checkpoints"))
    make_job(attempt, job_dir, checkpoints, prepared)
    reach("train.job_made")
    uploader = Uploader(
        checkpoints,
        attempt.claim.attempt,
        lambda: attempt.lease.lost,
        attempt.folder / "uploads",
    )
    events = TrainingEvents(attempt, EventTail(job_dir.events), uploader)
    try:
        result = supervise(attempt, job_dir, events)
    finally:
        uploader.close()
    events.forward()
    end(attempt, result)
    reach("train.trained")
    attempt.forward.progress(stage="upload")
    attempt.forward.log("Storing the LoRA and the previews")
    attempt.forward.feed((), at_once=True)
    body = store_outputs(attempt, job_dir, OUTPUTS)
    if "debug_dataset" in prepared:
        body["debug_dataset"] = prepared["debug_dataset"]
    units = attempt.training.billable_units(attempt.request)
    complete(attempt, body, units)
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
            checkpoint_every_s=runtime.settings.checkpoint_every_s,
            machine=_machine(runtime.settings),
            preview_share=runtime.settings.preview_share,
            claimed_at=time.time() - (time.monotonic() - attempt.started),
        )
    )


def _spec(attempt: Attempt) -> TrainingSpec:
    """The mode's, with what the operator decides."""
    spec: TrainingSpec = attempt.training.training_spec(attempt.request)
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


class TrainingEvents:
    """The trainer's events on their way to the database; files go to the store beside them."""

    def __init__(self, attempt: Attempt, tail: EventTail, uploader: Uploader) -> None:
        self._attempt = attempt
        self._tail = tail
        self._uploader = uploader
        self._stored: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.worth_saving = False

    def forward(self) -> None:
        """What is new since the last call. A preview is told of once it can be looked at."""
        events = []
        for event in self._tail.read():
            if event["kind"] == "step":
                self.worth_saving = True
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
