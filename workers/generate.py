"""The GPU stage of a generation: from a prepared source and LoRAs to a video and a bill."""

import dataclasses
import uuid
from pathlib import Path
from typing import Any, Final

from app.modes.canvas import Canvas
from app.modes.generation import MAX_INLINE_BYTES
from app.requests.files import INLINE
from app.storage.errors import ObjectMissing
from preprocessing.failpoints import reach
from preprocessing.manifest import MANIFEST_FILE, SOURCE_FILE, SourceManifest
from trainer.generation import LoraChoice, SafetyClassifier
from trainer.job import LORA_FILE, GenerateJob, JobDir
from workers.attempt import Attempt, PreparedGone
from workers.children import EventTail
from workers.failures import users_fault
from workers.gpu import Output, complete, end, store_outputs, supervise
from workers.loras import PreparedLora

OUTPUTS: Final[tuple[Output, ...]] = (("video", "video", "video/mp4"),)
SAMPLING: Final = "generate"
"""The trainer's stage with the sampling steps."""
SEED_BITS: Final = 32
"""Of a seed that the service chooses: as many as people copy without a slip."""


def generate(attempt: Attempt) -> None:
    """Run the job in the trainer child, store the video, complete the request."""
    prepared = attempt.claim.prepared
    assert prepared is not None
    job_dir = JobDir(attempt.folder / "job")
    make_job(attempt, job_dir, prepared)
    reach("generate.job_made")
    events = SamplingEvents(attempt, EventTail(job_dir.events))
    result = supervise(attempt, job_dir, events)
    events.forward()
    end(attempt, result)
    reach("generate.made")
    made = job_dir.generation_result()
    attempt.forward.progress(stage="upload")
    attempt.forward.log("Storing the video")
    attempt.forward.feed((), at_once=True)
    body = {
        **store_outputs(attempt, job_dir, OUTPUTS),
        "seed": made.seed,
        "prompt": made.prompt,
    }
    if attempt.request.sync_mode:
        body["video"] = inline(body["video"])
    # Of the file, which ends where the source does.
    units = attempt.generation.billable_units(Canvas(made.width, made.height), made.num_frames)
    complete(attempt, body, units)


def make_job(attempt: Attempt, job_dir: JobDir, prepared: dict[str, Any]) -> None:
    """Write the job directory; everything in it comes from the row and the store."""
    runtime, request = attempt.runtime, attempt.request
    canvas = Canvas(**prepared["canvas"])
    source = fetch_source(attempt, prepared["key"]) if "key" in prepared else None
    choices = tuple(
        LoraChoice(
            path=fetch_lora(attempt, index, PreparedLora(**stored)),
            name=stored["name"],
            scale=lora.scale,
            transformer=lora.transformer,
        )
        for index, (lora, stored) in enumerate(zip(request.loras, prepared["loras"], strict=True))
    )
    seed = seed_of(attempt.request_id) if request.seed is None else request.seed
    settings = runtime.settings
    job_dir.root.mkdir()
    job_dir.create(
        GenerateJob(
            id=attempt.request_id,
            spec=attempt.generation.generation_spec(request, canvas, seed, choices),
            source=source,
            safety=None
            if settings.safety_classifier is None
            else SafetyClassifier(
                folder=settings.safety_classifier.resolve(),
                unsafe_labels=settings.safety_labels,
                threshold=settings.safety_threshold,
            ),
            model=settings.model,
            text_encoder=settings.text_encoder,
            cache=runtime.cache,
        )
    )


def seed_of(request_id: str) -> int:
    """A seed for a request that names none: random, as its id is, and the same at every attempt."""
    return uuid.UUID(request_id).int % (1 << SEED_BITS)


def fetch_source(attempt: Attempt, key: str) -> Path:
    """Raises `PreparedGone`."""
    folder = attempt.folder / "source"
    storage = attempt.runtime.storage
    try:
        storage.fetch_tree(key, folder, last=SOURCE_FILE)
    except ObjectMissing as error:
        raise PreparedGone from error
    manifest = SourceManifest.load(folder)
    audio = None if manifest.audio is None else manifest.audio.path
    names = [manifest.frames, manifest.keep_mask, audio]
    if not all((folder / name).exists() for name in names if name is not None):
        # A rest with its marker would be taken for the whole for ever.
        storage.delete(f"{key}/{SOURCE_FILE}")
        raise PreparedGone
    return folder


def fetch_lora(attempt: Attempt, index: int, lora: PreparedLora) -> Path:
    """Raises `PreparedGone`."""
    path = attempt.folder / f"lora-{index}.safetensors"
    storage = attempt.runtime.storage
    try:
        storage.fetch(f"{lora.key}/{LORA_FILE}", path)
    except ObjectMissing as error:
        storage.delete(f"{lora.key}/{MANIFEST_FILE}")
        raise PreparedGone from error
    return path


def inline(video: dict[str, Any]) -> dict[str, Any]:
    """The entry of a video that the reply itself is to carry. Raises `Failure` for one that is too
    large, with the video beside the error: what was made is not lost."""
    if (size := video["file_size"]) <= MAX_INLINE_BYTES:
        return {**video, INLINE: True}
    failure = users_fault(
        f"The video has {size / 1e6:.1f} MB, and sync_mode returns at most "
        f"{MAX_INLINE_BYTES // 10**6} MB in the reply. Turn sync_mode off, or ask for fewer "
        "frames, a smaller resolution or a lower video_quality. This one is under `video`.",
        error_type="file_too_large",
        field="sync_mode",
        ctx={"max_size": MAX_INLINE_BYTES},
    )
    raise dataclasses.replace(failure, body={**failure.body, "video": video})


class SamplingEvents:
    """The trainer's events, with its sampling steps told as a training's are: users follow both
    in the same way."""

    worth_saving = False

    def __init__(self, attempt: Attempt, tail: EventTail) -> None:
        self._attempt = attempt
        self._tail = tail
        self._began_at = self._stepped_at = 0.0

    def forward(self) -> None:
        self._attempt.forward.feed(map(self._told, self._tail.read()))

    def _told(self, event: dict[str, Any]) -> dict[str, Any]:
        if event.get("name") != SAMPLING:
            return event
        match event["kind"]:
            case "stage" if event["state"] == "end":
                self._attempt.forward.end_steps()
                return event
            case "stage":
                self._began_at = self._stepped_at = event["ts"]
                return event
            case "progress":
                return self._step(event["ts"], event["done"], event["total"])
        return event

    def _step(self, ts: float, step: int, of: int) -> dict[str, Any]:
        """``of`` steps take about as long as those so far."""
        seconds, self._stepped_at = ts - self._stepped_at, ts
        return {
            "kind": "step",
            "ts": ts,
            "stage": SAMPLING,
            "step": step,
            "of": of,
            "step_time_s": round(seconds, 3),
            "eta_s": round((ts - self._began_at) / step * (of - step), 1),
        }
