"""The job directory: everything a training or a generation shares with whoever started it.

    JOB_DIR/job.json          in: `Job` or `GenerateJob`
    JOB_DIR/control           in, any time: one word of `Control`, written to the side and renamed
    JOB_DIR/wish-save         in, any time: a `Wish`; the trainer removes it when it is granted
    JOB_DIR/wish-sample       the same
    JOB_DIR/events.jsonl      out: progress (`preprocessing/events.py`)
    JOB_DIR/checkpoints/      out: `step-000250/` (`trainer/checkpoint.py`), the last two are kept
    JOB_DIR/outputs/          out: lora.safetensors, config.json, metrics.jsonl, reel.mp4, previews/
                              of a generation: video.mp4, generation.json
    JOB_DIR/result.json       out, last: `Result`

No torch here: the worker reads and writes these types without loading it.
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter

from preprocessing.events import EVENTS_FILE
from trainer.generation import GenerationResult, GenerationSpec, SafetyClassifier
from trainer.plan import MachineSettings
from trainer.spec import TrainingSpec, Wish

JOB_FILE = "job.json"
CONTROL_FILE = "control"
RESULT_FILE = "result.json"
LORA_FILE = "lora.safetensors"
CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
REEL_FILE = "reel.mp4"
VIDEO_FILE = "video.mp4"
GENERATION_FILE = "generation.json"
CHECKPOINT_MANIFEST = "manifest.json"
"""The last file of a checkpoint directory: with it, the directory is whole."""


class Control(StrEnum):
    """What the trainer is told between two steps."""

    CANCEL = "cancel"
    """Stop now; the adapter so far is saved as a checkpoint."""
    RELEASE = "release"
    """Save a checkpoint and stop: this machine is needed, another one goes on."""


class Job(BaseModel):
    """``job.json``. Paths are absolute or relative to the job directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: Literal["train"] = "train"
    id: str
    spec: TrainingSpec
    dataset: Path
    """A folder of `preprocessing.manifest`."""
    validation_clips: Path | None = None
    """A folder of `preprocessing.manifest.ValidationManifest`, where previews need sources."""
    model: str
    """``tiny``, a folder in diffusers layout, a hub id, or the official file."""
    text_encoder: Path | None = None
    """A folder with Gemma 3 and its tokenizer; of the official file, which has none."""
    cache: Path
    """Shared between jobs: encoded latents by content hash, the tiny model."""
    resume_from: Path | None = None
    """A checkpoint directory; None starts at step 0."""
    checkpoint_every: int = 250
    """Steps; the last step and a release always save one."""
    checkpoint_every_s: float | None = 45.0
    """Seconds of work after which one is saved however few the steps. None: by steps alone."""
    device: str = "auto"
    """``auto`` is CUDA where there is one, else the CPU."""
    machine: MachineSettings = MachineSettings()
    """What is not left to the trainer of how the job is fitted onto the device."""
    preview_share: float | None = None
    """Of the time of all steps, what previews may take besides; the last ones are always made.
    None: all of them are."""
    claimed_at: float | None = None
    """When a worker took the job, in unix seconds; for the log."""


class GenerateJob(BaseModel):
    """``job.json`` of a generation. Paths are absolute or relative to the job directory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: Literal["generate"] = "generate"
    id: str
    spec: GenerationSpec
    source: Path | None = None
    """A folder of `preprocessing.manifest.SourceManifest`, where ``source_rule(spec)`` asks."""
    safety: SafetyClassifier | None = None
    """None: there is no classifier, and what should be checked is not; the log says so."""
    model: str
    """As in `Job`; ``text_encoder``, ``cache`` and ``device`` too."""
    text_encoder: Path | None = None
    cache: Path
    device: str = "auto"


def _kind(job: object) -> str:
    """Jobs written before there were two kinds have none."""
    kind = job.get("kind", "train") if isinstance(job, dict) else getattr(job, "kind", "train")
    return str(kind)


AnyJob = Annotated[
    Annotated[Job, Tag("train")] | Annotated[GenerateJob, Tag("generate")], Discriminator(_kind)
]
_ANY_JOB: TypeAdapter[Job | GenerateJob] = TypeAdapter(AnyJob)


class Result(BaseModel):
    """``result.json``: how the job ended. Written once, to the side and renamed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["completed", "cancelled", "released", "failed"]
    step: int
    """Steps whose update is in the newest checkpoint or in the LoRA; of a generation, all steps
    when there is a video, else 0."""
    error_type: str | None = None
    error: str | None = None
    """For the user: what failed and what to change. No paths, no traceback (that is on stderr)."""
    users_fault: bool = False
    """True: the request or the dataset must change; False: trying again may help."""
    field: str | None = None
    """The request's field to change; None where it is not the user's fault or not known."""


class JobDir:
    """Paths of a job directory and its small files. Creates the folders it names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.events = root / EVENTS_FILE
        self.checkpoints = root / "checkpoints"
        self.outputs = root / "outputs"
        self.previews = root / "outputs" / "previews"
        self.lora = self.outputs / LORA_FILE
        self.config = self.outputs / CONFIG_FILE
        self.metrics = self.outputs / METRICS_FILE
        self.reel = self.outputs / REEL_FILE
        self.video = self.outputs / VIDEO_FILE
        self.generation = self.outputs / GENERATION_FILE

    def create(self, job: Job | GenerateJob) -> None:
        self.previews.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        write_atomically(self.root / JOB_FILE, job.model_dump_json(indent=2))

    def load(self) -> Job | GenerateJob:
        return _ANY_JOB.validate_json((self.root / JOB_FILE).read_bytes())

    def generation_result(self) -> GenerationResult:
        """What a completed generation says of its video."""
        return GenerationResult.model_validate_json(self.generation.read_bytes())

    def tell(self, control: Control) -> None:
        write_atomically(self.root / CONTROL_FILE, control.value)

    def told(self) -> Control | None:
        """What the caller wants, if anything; one `stat` when nothing."""
        try:
            return Control((self.root / CONTROL_FILE).read_text())
        except FileNotFoundError:
            return None

    def wish(self, wish: Wish) -> None:
        """Ask for it; asked again before it is granted, it is the same wish."""
        self._wish(wish).touch()

    def wishes(self) -> frozenset[Wish]:
        """What is asked for; one `stat` each."""
        return frozenset(wish for wish in Wish if self._wish(wish).exists())

    def granted(self, wish: Wish) -> None:
        """It is no wish any more."""
        self._wish(wish).unlink(missing_ok=True)

    def _wish(self, wish: Wish) -> Path:
        return self.root / f"wish-{wish}"

    def finish(self, result: Result) -> None:
        write_atomically(self.root / RESULT_FILE, result.model_dump_json(indent=2))

    def result(self) -> Result | None:
        try:
            return Result.model_validate_json((self.root / RESULT_FILE).read_bytes())
        except FileNotFoundError:
            return None


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: a reader sees the old file or the new one, never half."""
    aside = path.with_name(path.name + ".part")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
