"""One job, from its directory to its result: the story of a training, top to bottom.

That of a generation is in `trainer/generate.py`.
"""

import errno
import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from diffusers import LTX2VideoTransformer3DModel

from preprocessing.events import EventLog
from trainer.adapter import remove_adapter
from trainer.cache import EncodedCache
from trainer.check import check_artifact
from trainer.checkpoint import Checkpoint, CheckpointWriter, find_checkpoint, step_of, take_snapshot
from trainer.conditions import describe
from trainer.decode import Decoder
from trainer.device import device_name, forget_peak, peak_bytes, total_bytes
from trainer.encode import encode_all
from trainer.errors import CapacityError, TrainingError
from trainer.examples import Examples, clip_masks
from trainer.footage import Dataset
from trainer.generate import Generation
from trainer.given import GivenSource, open_sources
from trainer.job import Control, GenerateJob, Job, JobDir, Result, write_atomically
from trainer.loop import Hooks, Stopped, Trainer, train
from trainer.lora_file import LoraMetadata, save_lora
from trainer.model import BaseModel
from trainer.model_cache import ModelCache as ModelCache
from trainer.model_cache import collect, open_model, restore_base
from trainer.parallel import ALONE, Group, Ready
from trainer.plan import Workload
from trainer.policy import first_plan
from trainer.preview import find_previews, preview_steps, validation_geometry
from trainer.quantised import quantised_to
from trainer.reel import make_reel
from trainer.rounds import Rounds
from trainer.spec import TrainingSpec, Wish

INTERNAL_ERROR = "internal_error"
"""Not foreseen: the process that had it should not be trusted with another job."""

_STATUS: dict[Control, Literal["cancelled", "released"]] = {
    Control.CANCEL: "cancelled",
    Control.RELEASE: "released",
}


def run_job(
    job_dir: Path,
    models: ModelCache,
    group: Group = ALONE,
    *,
    log: type[EventLog] = EventLog,
) -> Result:
    """Run the job in ``job_dir`` to its end, whatever that is; always writes result.json.

    Nothing is raised: what went wrong is in the result, with a traceback on standard error.
    ``group`` are the processes that train it together, of which this one leads; the others are in
    `trainer/follow.py`.
    """
    directory = JobDir(job_dir)
    directory.previews.mkdir(parents=True, exist_ok=True)
    directory.checkpoints.mkdir(exist_ok=True)
    with log(directory.events) as events:
        run: _Run | Generation | None = None
        try:
            job = directory.load()
            if isinstance(job, GenerateJob):
                run = Generation(job, directory, models, events)
            else:
                run = _Run(job, directory, models, events, group)
            run.run()
            result = Result(status="completed", step=run.saved_step)
        except Stopped as stopped:
            result = Result(status=_STATUS[stopped.control], step=run.saved_step if run else 0)
        except Exception as error:
            traceback.print_exc()  # for the operator; the events are the user's to read
            result = _failure(error, run.saved_step if run else 0)
        finally:
            if run is not None:
                run.clean_up()
        directory.finish(result)
    return result


class _Run:
    """One job on its way. ``saved_step`` is what a checkpoint (or the LoRA) has."""

    def __init__(
        self, job: Job, directory: JobDir, models: ModelCache, events: EventLog, group: Group
    ) -> None:
        self.job = job
        self.directory = directory
        self.models = models
        self.events = events
        self.group = group
        self.saved_step = 0
        self._started = time.time()
        self._startup_s = 0.0
        self._model_was_loaded = False
        self._transformer: LTX2VideoTransformer3DModel | None = None
        self._held = ExitStack()
        pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writer = CheckpointWriter(self._held.enter_context(pool))

    def run(self) -> None:
        job = self.job
        base = open_model(job, self.directory)
        dataset, sources = self._read_dataset()
        with_audio = dataset.manifest.with_audio
        fingerprint = fingerprint_of(job.spec, dataset, base)
        checkpoint = self._find_checkpoint(job, fingerprint)
        cache = self._encode(dataset, sources, base)

        trainer = self._load_trainer(base, dataset, checkpoint)
        examples = Examples(dataset, cache, job.spec, base.device)
        first = examples[0]
        with self.events.stage("fit_memory"):
            trainer.prepare(first, self.events.log)
        num_tokens = first.video.tokens.shape[1]
        self.events.log(
            f"Training on {base.device}: {len(examples)} samples of {num_tokens} tokens, "
            f"from step {trainer.step}"
        )
        rounds = Rounds(
            job,
            self.directory,
            self.events,
            trainer,
            open_decoder=partial(Decoder.open, base, with_audio=with_audio),
            sources=sources,
            cache=cache,
            num_tokens=num_tokens,
            with_audio=with_audio,
        )
        self._train(trainer, examples, rounds, base, fingerprint)
        self._stop_if_told()
        self._store(trainer, dataset, base)
        self._join_reel()

    def _load_trainer(
        self, base: BaseModel, dataset: Dataset, checkpoint: Checkpoint | None
    ) -> Trainer:
        """The transformer, as the machine's memory allows, with an adapter: a new one, or the
        checkpoint's."""
        job, with_audio = self.job, dataset.manifest.with_audio
        work = Workload(dataset.footage[0].geometry.num_tokens, job.spec.rank, with_audio)
        plan = first_plan(work, base.device, job.machine, base.num_blocks)
        self._model_was_loaded = self.models.has(base, with_audio=with_audio, plan=plan)
        self.group.tell(Ready(plan, None if checkpoint is None else checkpoint.path))
        with self.events.stage("load_transformer"):
            transformer = self.models.transformer(base, with_audio=with_audio, plan=plan)
            self._transformer = transformer
        trainer = Trainer(
            transformer,
            job.spec,
            with_audio=with_audio,
            machine=job.machine,
            plan=plan,
            group=self.group,
        )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        return trainer

    def _train(
        self,
        trainer: Trainer,
        examples: Examples,
        rounds: Rounds,
        base: BaseModel,
        fingerprint: str,
    ) -> None:
        """All steps; then the event of what they took, from which estimates are made."""
        job, validation = self.job, self.job.spec.validation
        hooks = Hooks(
            told=lambda: self.group.tell((self.directory.told(),))[0],
            save_checkpoint=partial(self._save, trainer, fingerprint),
            make_previews=rounds.after,
            checkpoint_every=job.checkpoint_every,
            checkpoint_every_s=job.checkpoint_every_s,
            is_saving=self._is_saving,
            preview_steps=preview_steps(job.spec.num_steps, validation.at)
            if validation.prompts
            else (),
            first_step_done=partial(self._say_first_step, base.device),
            wished=self.directory.wishes,
            grant=partial(self._grant, trainer, fingerprint, rounds),
        )
        forget_peak(base.device)
        with self.events.stage("train"):
            step_time_s = train(trainer, examples, hooks, self.directory.metrics, self.events)
        first = examples[0]
        self.events.emit(
            "trained",
            model=base.id,
            device=device_name(base.device),
            video_tokens=first.video.tokens.shape[1],
            audio_tokens=0 if first.audio is None else first.audio.tokens.shape[1],
            rank=job.spec.rank,
            step_time_s=step_time_s,
            num_previews=rounds.num_made,
            previews_s=round(rounds.budget.spent_s, 3),
            preview_tokens=validation_geometry(validation).num_tokens,
            peak_memory_bytes=peak_bytes(base.device),
            device_memory_bytes=total_bytes(base.device),
            plan=trainer.plan.describe(base.num_blocks),
            startup_s=self._startup_s,
            model_was_loaded=self._model_was_loaded,
        )

    def _read_dataset(self) -> tuple[Dataset, list[GivenSource]]:
        """The dataset, and what validation clips its previews begin with."""
        job, spec = self.job, self.job.spec
        with self.events.stage("read_dataset"):
            dataset = Dataset(self._path(job.dataset))
            for clip in dataset.footage:
                clip_masks(clip, spec.conditions)  # a bad one ends the job here, not at its step
            clips = job.validation_clips
            with_audio = dataset.manifest.with_audio
            return dataset, open_sources(clips and self._path(clips), spec, with_audio=with_audio)

    def _encode(
        self, dataset: Dataset, sources: list[GivenSource], base: BaseModel
    ) -> EncodedCache:
        """Latents and contexts of everything, which stay as long as the job."""
        cache = EncodedCache(self._path(self.job.cache), base)
        validation = self.job.spec.validation
        prompts = [*dataset.captions, *(entry.prompt for entry in validation.prompts)]
        if validation.prompts:
            prompts.append(validation.negative_prompt)
        clips = [*dataset.footage, *(source.clip for source in sources)]
        self._held.enter_context(cache.claim(clips, prompts))
        self.models.drop_text_encoder()
        self.models.make_room(base)
        encode_all(clips, prompts, base, cache, self.events, between=self._stop_if_told)
        return cache

    def _save(self, trainer: Trainer, fingerprint: str, step: int, wait: bool) -> None:
        """Begin a checkpoint, after the one before, and ``wait`` for it."""
        self._report_saved(wait=True)
        snapshot = take_snapshot(
            self.directory.checkpoints,
            step=step,
            fingerprint=fingerprint,
            adapter=trainer.adapter(),
            optimizer=trainer.optimizer,
            metrics=self.directory.metrics,
            previews=self.directory.previews,
        )
        self._writer.begin(snapshot)
        if wait:
            self._report_saved(wait=True)

    def _is_saving(self) -> bool:
        self._report_saved(wait=False)
        return self._writer.is_writing

    def _report_saved(self, *, wait: bool) -> None:
        path = self._writer.finished(wait=wait)
        if path is not None:
            self.saved_step = step_of(path)
            self.events.emit("checkpoint", step=self.saved_step, path=str(path))

    def _grant(
        self, trainer: Trainer, fingerprint: str, rounds: Rounds, wish: Wish, step: int
    ) -> None:
        """What somebody asked for, unless the schedule has just made it."""
        match wish:
            case Wish.SAVE:
                self._report_saved(wait=True)
                if self.saved_step != step:
                    self._save(trainer, fingerprint, step, wait=True)
                self.events.log(f"Saved the checkpoint of step {step}, as asked for")
            case Wish.SAMPLE:
                made = rounds.asked(step)
                if self.directory.told() is not None:
                    return  # the next attempt makes them
                if made:
                    self.events.log(f"Made previews after step {step}, as asked for")
                else:
                    text = f"The previews asked for could not all be made after step {step}"
                    self.events.log(text, level="WARN")
        self.directory.granted(wish)
        self.events.emit("granted", wish=wish, step=step)

    def _say_first_step(self, device: torch.device) -> None:
        """How long it took until the first step was done."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        claimed_at = self.job.claimed_at
        self._startup_s = round(time.time() - (claimed_at or self._started), 3)
        since = "claim" if claimed_at else "start"
        model = "was there from before" if self._model_was_loaded else "was loaded"
        said = f"First step done {self._startup_s:.1f} s after the {since}; the model {model}"
        self.events.log(said)

    def _store(self, trainer: Trainer, dataset: Dataset, base: BaseModel) -> None:
        """The LoRA, read again and checked, and its config."""
        spec, transformer = self.job.spec, trainer.transformer
        with_audio = dataset.manifest.with_audio
        metadata = _metadata(spec, dataset, base)
        save_lora(self.directory.lora, trainer.adapter(), metadata)
        with self.events.stage("check"):
            check_artifact(
                self.directory.lora, transformer, _fresh(base, transformer, with_audio=with_audio)
            )
        config = config_json(spec, dataset, base)
        write_atomically(self.directory.config, json.dumps(config, indent=2, ensure_ascii=False))

    def clean_up(self) -> None:
        """No adapter outlives its job, and no claim on the cache."""
        self._held.close()
        if self._transformer is not None:
            restore_base(self._transformer)
        self._transformer = None
        collect()

    def _find_checkpoint(self, job: Job, fingerprint: str) -> Checkpoint | None:
        """The one to resume from, its files put back; else the outputs are emptied."""
        self.directory.metrics.unlink(missing_ok=True)
        shutil.rmtree(self.directory.previews)
        self.directory.previews.mkdir()
        if job.resume_from is None:
            return None
        checkpoint = find_checkpoint(
            self._path(job.resume_from),
            fingerprint,
            warn=lambda message: self.events.log(message, level="WARN"),
        )
        if checkpoint is not None:
            checkpoint.restore_files(self.directory.metrics, self.directory.previews)
            self.saved_step = checkpoint.step
            self.events.log(f"Resuming from the checkpoint of step {checkpoint.step}")
        return checkpoint

    def _join_reel(self) -> None:
        spec = self.job.spec
        prompts = [entry.prompt for entry in spec.validation.prompts]
        previews = find_previews(self.directory.previews, prompts)
        if previews:
            with self.events.stage("reel"):
                make_reel(previews, self.directory.reel, num_steps=spec.num_steps)

    def _stop_if_told(self) -> None:
        if control := self.directory.told():
            raise Stopped(control)

    def _path(self, path: Path) -> Path:
        return self.directory.root / path


def config_json(spec: TrainingSpec, dataset: Dataset, base: BaseModel) -> dict[str, object]:
    """config.json: enough to set up inference, and to say what was trained."""
    manifest = dataset.manifest
    return {
        "trigger_phrase": spec.trigger_phrase,
        "training_type": spec.training_type,
        "base_model": base.id,
        "base_model_version": base.version_info,
        "base_model_is_tiny": base.is_tiny,
        "rank": spec.rank,
        "alpha": spec.rank,
        "number_of_steps": spec.num_steps,
        "learning_rate": spec.learning_rate,
        "width": manifest.width,
        "height": manifest.height,
        "number_of_frames": manifest.num_frames,
        "frame_rate": str(manifest.samples[0].frame_rate),
        "with_audio": manifest.with_audio,
        "number_of_samples": len(manifest.samples),
        "seed": spec.seed,
        "conditions": [
            describe(condition, width=manifest.width, height=manifest.height)
            for condition in spec.conditions
        ],
        "dataset_sha256": dataset.hash,
        "software": f"reelsmith {version('reelsmith')}",
    }


def _metadata(spec: TrainingSpec, dataset: Dataset, base: BaseModel) -> LoraMetadata:
    manifest = dataset.manifest
    return LoraMetadata(
        training_type=spec.training_type,
        rank=spec.rank,
        steps=spec.num_steps,
        width=manifest.width,
        height=manifest.height,
        num_frames=manifest.num_frames,
        frame_rate=str(manifest.samples[0].frame_rate),
        with_audio=manifest.with_audio,
        trigger_phrase=spec.trigger_phrase,
        dataset_hash=dataset.hash,
        base_model=base.id,
    )


def _fresh(
    base: BaseModel, transformer: LTX2VideoTransformer3DModel, *, with_audio: bool
) -> Callable[[], LTX2VideoTransformer3DModel]:
    """A base model for the check, as precise as the trained one: read again on the CPU; on a GPU,
    where two need not fit, the trained one without its adapter."""
    precision = quantised_to(transformer)

    def without_adapter() -> LTX2VideoTransformer3DModel:
        remove_adapter(transformer)
        return transformer

    if base.device.type == "cuda":
        return without_adapter
    return lambda: base.transformer(with_audio=with_audio, precision=precision)


def _failure(error: Exception, step: int) -> Result:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        error = CapacityError(
            "The device ran out of memory. Use fewer frames, a lower resolution or a lower rank."
        )
    if isinstance(error, TrainingError):
        return Result(
            status="failed",
            step=step,
            error_type=error.error_type,
            error=str(error),
            users_fault=error.users_fault,
            field=error.field,
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        kind, message = "disk_full", "The disk of the training machine is full. Try again."
    else:
        kind = INTERNAL_ERROR
        message = f"The trainer failed unexpectedly ({type(error).__name__}). Try again."
    return Result(status="failed", step=step, error_type=kind, error=message)


def fingerprint_of(spec: TrainingSpec, dataset: Dataset, base: BaseModel) -> str:
    """What a checkpoint belongs to. A resume with any of it changed is refused. The sampling steps
    of previews are an operator's setting, which may change between two attempts of a training."""
    told = spec.model_dump_json(exclude={"validation": {"num_inference_steps"}})
    parts = (told, dataset.hash, base.fingerprint)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
