"""One generation, from its job to its video: the story, top to bottom.

The sampler is that of the previews; what is added is a user's wishes: any canvas and length, LoRAs
by file, a source that is held more or less firmly, and what was given laid over the result.
"""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np
from diffusers import LTX2VideoTransformer3DModel

from preprocessing.events import EventLog
from trainer.cache import EncodedCache
from trainer.decode import Decoder
from trainer.device import device_name, forget_peak, peak_bytes, total_bytes
from trainer.encode import encode_all
from trainer.errors import LoraFileError, SampleError
from trainer.expansion import CannotExpand, expand_prompt
from trainer.generation import GenerationResult, GenerationSpec, num_passes
from trainer.generation_plan import SamplePlan
from trainer.guidance import plain_guidance
from trainer.job import GenerateJob, JobDir, write_atomically
from trainer.loop import Stopped
from trainer.lora_check import check_numbers, lora_field, named, read_lora
from trainer.lora_stack import ScaledLora, add_loras
from trainer.model import BaseModel
from trainer.model_cache import ModelCache, collect, open_model, restore_base
from trainer.mp4 import Mp4Writer, compression_of
from trainer.safetensors_header import model_linears, shown
from trainer.safety import SafetyCheck
from trainer.sampler import SampledLatents, build_request, is_finite, sample
from trainer.source import GenerationSource, open_source

_FRAMES_PER_REPORT: Final = 8
"""Written between two reports: a slow encoder takes a second for them."""


class Generation:
    """One job on its way. ``saved_step`` is all steps once there is a video."""

    def __init__(
        self, job: GenerateJob, directory: JobDir, models: ModelCache, events: EventLog
    ) -> None:
        self.job = job
        self.directory = directory
        self.models = models
        self.events = events
        self.saved_step = 0
        self._sampling_s = 0.0
        self._transformer: LTX2VideoTransformer3DModel | None = None
        self._held = ExitStack()
        self._notes: list[str] = []

    def run(self) -> None:
        job, spec = self.job, self.job.spec
        base = open_model(job, self.directory)
        with self.events.stage("read_inputs"):
            loras = self._loras(spec, base)
            source = open_source(job.source and self._path(job.source), spec)
            plan = SamplePlan.of(spec, source)
            safety = self._safety(plan.num_frames)
        if source is not None:
            self._notes += source.manifest.notes  # logged by the preparation
        prompt = self._prompt(spec, base)
        cache = self._encoded(prompt, source, base)
        forget_peak(base.device)
        latents = self._sampled(spec, prompt, plan, loras, cache, base)
        writing = time.monotonic()
        with self.events.stage("write_video"):
            self._write(spec, plan, latents, base, safety)
        self._say_what_it_took(spec, plan, latents, base, time.monotonic() - writing)
        result = GenerationResult(
            seed=spec.seed,
            prompt=prompt,
            prompt_expanded=prompt != spec.prompt,
            safety="passed" if safety else "unavailable" if spec.check_safety else "off",
            width=spec.width,
            height=spec.height,
            num_frames=plan.num_frames,
            frame_rate=spec.frame_rate,
            with_audio=spec.with_audio,
            notes=tuple(self._notes),
        )
        write_atomically(self.directory.generation, result.model_dump_json(indent=2))
        self.saved_step = spec.num_inference_steps

    def clean_up(self) -> None:
        """No adapter outlives its job, and no claim on the cache."""
        self._held.close()
        if self._transformer is not None:
            restore_base(self._transformer)
        self._transformer = None
        collect()

    def _loras(self, spec: GenerationSpec, base: BaseModel) -> list[ScaledLora]:
        """The LoRAs, checked against this model before a byte of its weights is read."""
        linears = model_linears(base.folder)
        loras = []
        for index, choice in enumerate(spec.loras):
            try:
                lora = read_lora(self._path(choice.path), linears)
                check_numbers(lora)
            except LoraFileError as error:
                refusal = LoraFileError(named(choice.name, error))
                refusal.field = lora_field(index)
                raise refusal from error
            name = f"LoRA {shown(choice.name)}"
            self.events.log(f"{name}: {lora.describe()}, scale {choice.scale:g}")
            if choice.transformer != "both":
                self._note(
                    f"{name} is for the {choice.transformer} pass of a model with two; this one "
                    "has one, so it acts in all of it."
                )
            if lora.has_audio and not spec.with_audio:
                silent = sum(layer.is_audio for layer in lora.layers)
                self._note(f"{name}: {silent} layers for sound are left out, since there is none.")
            loras.append(ScaledLora(lora, choice.scale))
        return loras

    def _safety(self, num_frames: int) -> SafetyCheck | None:
        job = self.job
        if not job.spec.check_safety:
            return None
        if job.safety is None:
            self._note("The safety check is off: this service has no classifier.")
            return None
        folder = self._path(job.safety.folder)
        return SafetyCheck(job.safety.model_copy(update={"folder": folder}), num_frames)

    def _prompt(self, spec: GenerationSpec, base: BaseModel) -> str:
        """As the model gets it."""
        if not spec.expand_prompt:
            return spec.prompt
        with self.events.stage("expand_prompt"):
            try:
                expanded = expand_prompt(self.models.text_encoder(base), spec.prompt)
            except CannotExpand as reason:
                self._note(f"The prompt is not expanded: {reason}.")
                return spec.prompt
        self.events.log(f"Expanded prompt: {expanded}")
        return expanded

    def _encoded(
        self, prompt: str, source: GenerationSource | None, base: BaseModel
    ) -> EncodedCache:
        """The cache, with all that this job needs in it until the job ends."""
        cache = EncodedCache(self._path(self.job.cache), base)
        clips = [] if source is None else [source.clip]
        prompts = _prompts(self.job.spec, prompt)
        self._held.enter_context(cache.claim(clips, prompts))
        encode_all(
            clips,
            prompts,
            base,
            cache,
            self.events,
            between=self._stop_if_told,
            text_encoder=lambda: self.models.text_encoder(base),
        )
        self.models.spare_text_encoder(base)
        return cache

    def _sampled(
        self,
        spec: GenerationSpec,
        prompt: str,
        plan: SamplePlan,
        loras: list[ScaledLora],
        cache: EncodedCache,
        base: BaseModel,
    ) -> SampledLatents:
        with self.events.stage("load_transformer"):
            transformer = self.models.transformer(base, with_audio=spec.with_audio, exact=False)
            self._transformer = transformer
            add_loras(transformer, loras, with_audio=spec.with_audio)
        video, audio = plan.given(spec, cache)
        positive, *negative = (cache.context(text) for text in _prompts(spec, prompt))
        request = build_request(
            transformer,
            plan.geometry,
            positive,
            negative[0] if negative else None,
            plain_guidance(spec.guidance_scale, with_audio=spec.with_audio),
            num_steps=spec.num_inference_steps,
            seed=spec.seed,
            given_video=video,
            given_audio=audio,
        )

        def report(done: int, total: int) -> None:
            self.events.emit("progress", name="generate", done=done, total=total)

        started = time.monotonic()
        with self.events.stage("generate"):
            latents = sample(
                transformer,
                request,
                on_step=report,
                should_stop=lambda: self.directory.told() is not None,
            )
        restore_base(transformer)
        if base.device.type == "cuda":
            collect()  # decoding wants the room
        self._stop_if_told()
        if latents is None or not is_finite(latents):
            raise SampleError(
                "The sample became NaN or Inf. LoRAs that act too strongly do that, and a very "
                "high guidance_scale: lower them."
            )
        self._sampling_s = time.monotonic() - started  # a GPU has done all of it only now
        return latents

    def _write(
        self,
        spec: GenerationSpec,
        plan: SamplePlan,
        latents: SampledLatents,
        base: BaseModel,
        safety: SafetyCheck | None,
    ) -> None:
        """Decode and write, a piece of the clip at a time; no video is left that is not safe."""
        decoder = Decoder.open(base, with_audio=spec.with_audio)
        sound = decoder.sound(latents.audio, plan.geometry)
        overlay = plan.overlay(spec)
        shown = range(plan.num_cut_in_front, plan.num_cut_in_front + plan.num_frames)
        with Mp4Writer(
            self.directory.video,
            width=spec.width,
            height=spec.height,
            frame_rate=spec.frame_rate,
            with_audio=spec.with_audio,
            compression=compression_of(spec.encoding),
        ) as writer:
            first = 0
            for frames in decoder.frames(latents.video, plan.geometry):
                if overlay is not None:
                    overlay.apply(frames, first)
                for number, frame in enumerate(frames, start=first):
                    if number not in shown:
                        continue
                    self._stop_if_told()
                    picture = np.ascontiguousarray(frame[: spec.height, : spec.width])
                    writer.write_frame(picture)
                    if safety is not None:
                        safety.see(picture)
                    self._report_frame(shown.index(number) + 1, plan.num_frames)
                first += len(frames)
            if sound is not None:
                writer.write_audio(plan.cut_sound(plan.lay_sound(sound, spec)))
            if safety is not None:
                safety.require_safe()  # raised in here, so that no file appears

    def _say_what_it_took(
        self,
        spec: GenerationSpec,
        plan: SamplePlan,
        latents: SampledLatents,
        base: BaseModel,
        writing_s: float,
    ) -> None:
        """For the estimates of others like it (`app/requests/measurements.py`)."""
        self.events.emit(
            "generated",
            model=base.id,
            device=device_name(base.device),
            video_tokens=plan.geometry.num_tokens,
            audio_tokens=0 if latents.audio is None else latents.audio.shape[1],
            num_passes=num_passes(spec.guidance_scale),
            step_time_s=round(self._sampling_s / spec.num_inference_steps, 4),
            num_pixels=spec.width * spec.height * plan.num_frames,
            writing_s=round(writing_s, 3),
            peak_memory_bytes=peak_bytes(base.device),
            device_memory_bytes=total_bytes(base.device),
        )

    def _report_frame(self, done: int, total: int) -> None:
        if done % _FRAMES_PER_REPORT == 0 or done == total:
            self.events.emit("progress", name="write_video", done=done, total=total)

    def _note(self, sentence: str) -> None:
        self._notes.append(sentence)
        self.events.log(sentence)

    def _stop_if_told(self) -> None:
        if control := self.directory.told():
            raise Stopped(control)

    def _path(self, path: Path) -> Path:
        return self.directory.root / path


def _prompts(spec: GenerationSpec, prompt: str) -> list[str]:
    """What the model reads: the prompt and, with guidance, what to avoid."""
    return [prompt, spec.negative_prompt][: num_passes(spec.guidance_scale)]
