"""The rounds of previews of one training: a training stops for one, within what they may cost."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from preprocessing.events import EventLog
from trainer.attention import attention_kernel
from trainer.cache import EncodedCache
from trainer.cadence import PreviewBudget, guess_round_s
from trainer.decode import Decoder
from trainer.given import GivenSource, preview_prompts
from trainer.guidance import num_passes
from trainer.job import Job, JobDir
from trainer.loop import Trainer
from trainer.model_cache import collect
from trainer.preview import find_previews, make_previews, validation_geometry


class Rounds:
    """Made right before the first step, whose pace tells what a round may take."""

    def __init__(
        self,
        job: Job,
        directory: JobDir,
        events: EventLog,
        trainer: Trainer,
        *,
        open_decoder: Callable[[], Decoder],
        sources: Sequence[GivenSource],
        cache: EncodedCache,
        num_tokens: int,
        with_audio: bool,
    ) -> None:
        """``num_tokens``: of the video of a training step."""
        self._spec = job.spec
        self._directory = directory
        self._events = events
        self._trainer = trainer
        self._open_decoder = open_decoder
        self._sources = sources
        self._cache = cache
        self._num_tokens = num_tokens
        self._with_audio = with_audio
        self._started = time.monotonic()
        self._first_step = trainer.step
        self._prompts = [entry.prompt for entry in job.spec.validation.prompts]
        self.budget = PreviewBudget(job.preview_share)
        self.num_made = 0
        """Clips, of all rounds of this process."""

    def after(self, step: int) -> None:
        """The round after ``step``, unless there is one already or it would cost too much."""
        if self._has_all_of(step):
            return
        if step < self._spec.num_steps and not self._is_affordable(step):
            self._events.log(f"No previews after step {step}: they would cost too much time")
            return
        self._make(step)

    def asked(self, step: int) -> bool:
        """A round that somebody asked for, whatever it costs. Returns whether it is complete."""
        if not self._has_all_of(step):
            self._make(step, asked=True)
        return self._has_all_of(step)

    def _make(self, step: int, *, asked: bool = False) -> None:
        began = time.monotonic()
        with (
            self._may_lack_memory(),
            self._events.stage("previews"),
            attention_kernel(self._trainer.kernel),
        ):
            make_previews(
                self._trainer.transformer,
                self._open_decoder(),
                preview_prompts(self._prompts, self._sources, self._cache),
                self._cache.context(self._spec.validation.negative_prompt),
                self._spec.validation,
                step=step,
                folder=self._directory.previews,
                events=self._events,
                with_audio=self._with_audio,
                should_stop=lambda: self._directory.told() is not None,
            )
            self.num_made += len(self._prompts)
            self.budget.paid(time.monotonic() - began, asked=asked)
        collect()

    def _has_all_of(self, step: int) -> bool:
        found = find_previews(self._directory.previews, self._prompts)
        return sum(preview.step == step for preview in found) == len(self._prompts)

    def _is_affordable(self, step: int) -> bool:
        validation = self._spec.validation
        training_s = time.monotonic() - self._started - self.budget.spent_s
        step_s = training_s / max(1, step - self._first_step)
        return self.budget.allows(
            first_guess_s=guess_round_s(
                step_s=step_s,
                step_tokens=self._num_tokens,
                tokens=validation_geometry(validation).num_tokens,
                num_prompts=len(self._prompts),
                num_steps=validation.num_inference_steps,
                passes=num_passes(validation, with_audio=self._with_audio),
            ),
            training_s=step_s * self._spec.num_steps,
        )

    @contextmanager
    def _may_lack_memory(self) -> Iterator[None]:
        """A picture that does not fit must not cost the training."""
        try:
            yield
        except torch.OutOfMemoryError:
            self._events.log(
                "No memory for previews: left out. The training goes on.", level="WARN"
            )
