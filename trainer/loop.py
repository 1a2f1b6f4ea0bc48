"""The training loop: one update per step, and what happens between two of them.

Everything that a step depends on is its number, the adapter and the optimizer's moments: so a
resumed training is the uninterrupted one. Losses stay on the device until they are flushed, so no
step waits for the host.
"""

import json
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from preprocessing.events import EventLog
from trainer.adapter import adapter_state, add_adapter, load_adapter_state
from trainer.ahead import Ahead, ahead
from trainer.attention import attention_kernel, fastest_kernel
from trainer.cadence import CheckpointPace
from trainer.checkpoint import Checkpoint, restore_optimizer
from trainer.errors import CapacityError, DivergedError
from trainer.examples import Examples
from trainer.execution import COMPILER, compile_blocks, execution_of, wants_compiling
from trainer.flow import Draws, Example, draw, velocity_loss
from trainer.job import Control
from trainer.parallel import ALONE, Group
from trainer.plan import MachineSettings, Plan
from trainer.policy import apply_plan, fall_back, fewer_recomputed, free_bytes
from trainer.spec import TrainingSpec, Wish
from trainer.timesteps import sample_index, step_generator

FLUSH_EVERY = 10
"""Steps between two readings of the losses; each makes the host wait for the device once."""


ADAM_BYTES = 8
"""Two moments in fp32 for each parameter."""


class Stopped(Exception):
    """The caller told the trainer to stop; what was to be saved is saved."""

    def __init__(self, control: Control) -> None:
        super().__init__(control.value)
        self.control = control


@dataclass(frozen=True)
class Hooks:
    """What the loop calls between steps; all of it is run.py's business."""

    told: Callable[[], Control | None]
    save_checkpoint: Callable[[int, bool], None]
    """After this many updates; True: not only begin, but wait until it is written."""
    make_previews: Callable[[int], None]
    checkpoint_every: int
    preview_steps: tuple[int, ...]
    """Empty where there is nothing to preview."""
    checkpoint_every_s: float | None = None
    is_saving: Callable[[], bool] = lambda: False
    """Asked after each step: whether a checkpoint is still being written."""
    first_step_done: Callable[[], None] = lambda: None
    """After the first update of this run."""
    wished: Callable[[], frozenset[Wish]] = frozenset
    grant: Callable[[Wish, int], None] = lambda wish, step: None
    """After this many updates, and after what was due then anyway."""


class Trainer:
    """Adapter and optimizer on a frozen transformer. ``step`` counts the updates so far.

    ``machine`` and ``plan`` say how the transformer is run; None is a plan by itself: everything is
    kept. ``group`` are the processes that train the same adapter, each on samples of its own.
    """

    def __init__(
        self,
        transformer: LTX2VideoTransformer3DModel,
        spec: TrainingSpec,
        *,
        with_audio: bool,
        machine: MachineSettings | None = None,
        plan: Plan | None = None,
        group: Group = ALONE,
    ) -> None:
        self.transformer = transformer
        self.spec = spec
        self.step = 0
        self.device = transformer.proj_in.weight.device
        self.machine = machine or MachineSettings()
        self.plan = plan or Plan()
        self.kernel: str | None = None
        self.group = group
        self.parameters: list[nn.Parameter] = add_adapter(
            transformer, spec.rank, with_audio, seed=spec.seed
        )
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=self.device.type == "cuda",
        )
        apply_plan(transformer, self.plan, self.device)

    def restore(self, checkpoint: Checkpoint) -> None:
        load_adapter_state(self.transformer, checkpoint.adapter)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.step = checkpoint.step

    def adapter(self) -> dict[str, Tensor]:
        return adapter_state(self.transformer)

    def prepare(self, example: Example, say: Callable[[str], None]) -> None:
        """Settle how steps like one on ``example`` are run, and ``say`` it: the attention kernel,
        compiled or not, and the memory plan, proved by steps whose results are thrown away.

        Raises `CapacityError` when no plan fits.
        """
        self._choose_kernel(example, say)
        if wants_compiling(self.machine, self.device, self.spec.num_steps - self.step):
            compile_blocks(self.transformer, COMPILER)
        if self.device.type == "cuda" or execution_of(self.transformer).compiled is not None:
            self._prove(example, say)
        self._keep_more(example)
        say(self.plan.describe(len(self.transformer.transformer_blocks)))

    def _prove(self, example: Example, say: Callable[[str], None]) -> None:
        try:
            self.try_step(example)
        except (CapacityError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if execution_of(self.transformer).compiled is None:
                raise
            traceback.print_exc()  # for the operator
            compile_blocks(self.transformer, None)
            say(f"The blocks can't be compiled here ({type(error).__name__}); they run as written")
            self.try_step(example)

    def try_step(self, example: Example) -> None:
        """One step's forward and backward, thrown away; falls back until it fits."""
        self._backward(example, self.draws(example, self.step), has_begun=False)
        self.optimizer.zero_grad(set_to_none=True)

    def draws(self, example: Example, step: int) -> Draws:
        """The random numbers of ``step``: of its number in the group's sequence of samples."""
        number = self.group.sample_number(step)
        return draw(example, step_generator(self.spec.seed, number))

    def update(self, example: Example, draws: Draws | None = None) -> Tensor:
        """One step on ``example`` with ``draws``, or those of the step's own number. Returns [4],
        on the device: loss, video loss, audio loss (NaN where there is none) and the gradient's
        norm before clipping. In a group, losses and gradients are means over its samples.

        Raises `CapacityError` when the step does not fit even with every block recomputed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.step)
        losses = self._backward(example, draws or self.draws(example, self.step), has_begun=True)
        losses = self.group.mean(losses, [parameter.grad for parameter in self.parameters])
        norm = nn.utils.clip_grad_norm_(self.parameters, self.spec.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return torch.cat([losses, norm.detach()[None]])

    def _backward(self, example: Example, draws: Draws, *, has_begun: bool) -> Tensor:
        while True:
            # Suppressed: an exception that is kept would keep what its frames hold.
            with suppress(torch.OutOfMemoryError):
                return self._forward_backward(example, draws)
            # Once more with the same random numbers, in less memory.
            self.optimizer.zero_grad(set_to_none=True)
            plan = fall_back(
                self.plan,
                self.machine,
                self.device,
                num_blocks=len(self.transformer.transformer_blocks),
                has_begun=has_begun,
            )
            if plan is None:
                raise CapacityError(
                    f"A training step on {example.video.tokens.shape[1]} tokens with rank "
                    f"{self.spec.rank} does not fit on this device. Use fewer frames, a lower "
                    "resolution, a lower rank, or a device with more memory."
                )
            self._adopt(plan)

    def _adopt(self, plan: Plan) -> None:
        self.plan = plan
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        apply_plan(self.transformer, plan, self.device)

    def _forward_backward(self, example: Example, draws: Draws) -> Tensor:
        reduced = self.transformer.proj_in.weight.dtype == torch.bfloat16
        with attention_kernel(self.kernel):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced):
                losses = velocity_loss(self.transformer, example, draws)
            losses.total.backward()
        # Filled on the device: a number that is sent there makes the host wait.
        audio = losses.total.new_full((), float("nan")) if losses.audio is None else losses.audio
        return torch.stack([losses.total, losses.video, audio]).detach()

    def _choose_kernel(self, example: Example, say: Callable[[str], None]) -> None:
        config = self.transformer.config
        wish = self.machine.attention
        if wish != "auto":
            self.kernel = wish
            return
        self.kernel, seconds = fastest_kernel(
            self.device,
            example.video.tokens.shape[1],
            config.num_attention_heads,
            config.attention_head_dim,
        )
        if self.kernel is not None:
            times = ", ".join(f"{name} {1000 * one:.1f} ms" for name, one in seconds.items())
            say(f"Attention by {self.kernel}, measured: {times}")

    def _keep_more(self, example: Example) -> None:
        """Where memory can be measured, recompute no more blocks than that calls for."""
        if self.device.type != "cuda" or self.machine.recomputed_blocks is not None:
            return

        def peak_bytes(plan: Plan) -> int:
            self._adopt(plan)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.try_step(example)
            return torch.cuda.max_memory_reserved(self.device)

        budget = free_bytes(self.device)
        if not self.optimizer.state:  # AdamW's moments come with the first update
            budget -= ADAM_BYTES * sum(parameter.numel() for parameter in self.parameters)
        plan = fewer_recomputed(
            self.plan,
            peak_bytes,
            budget,
            num_blocks=len(self.transformer.transformer_blocks),
        )
        self._adopt(plan)
        self.try_step(example)


def train(
    trainer: Trainer, examples: Examples, hooks: Hooks, metrics: Path, events: EventLog
) -> float | None:
    """Train from ``trainer.step`` to the spec's last step.

    Order after a step: checkpoint, previews, what is wished for, then a stop of the caller's. A
    resumed training first makes the previews that were due at its step, should the interruption
    have cost them.
    Raises `Stopped` (after saving a checkpoint), `DivergedError`, `CapacityError`.

    Returns:
        The median of the seconds that a step took; None where none was left to do.
    """
    spec = trainer.spec
    log = MetricsLog(spec, metrics, events, trainer.step)
    if trainer.step in hooks.preview_steps:
        hooks.make_previews(trainer.step)

    def batch(step: int) -> tuple[Example, Draws]:
        number = trainer.group.sample_number(step)
        example = examples[sample_index(spec.seed, number, len(examples))]
        return example, trainer.draws(example, step)

    with ahead(batch, end=spec.num_steps) as batches:
        _train(trainer, batches, hooks, log)
    return log.median_step_time_s


def _train(
    trainer: Trainer, batches: Ahead[tuple[Example, Draws]], hooks: Hooks, log: "MetricsLog"
) -> None:
    spec = trainer.spec
    pace = CheckpointPace(
        hooks.checkpoint_every, hooks.checkpoint_every_s, trainer.step, time.monotonic()
    )
    while trainer.step < spec.num_steps:
        if control := hooks.told():
            log.flush()
            log.report()
            hooks.save_checkpoint(trainer.step, True)
            raise Stopped(control)
        log.add(trainer.update(*batches.take(trainer.step)))
        step = trainer.step
        if step == log.first_step:
            hooks.first_step_done()
        last = step == spec.num_steps
        is_saving = hooks.is_saving()
        checkpoint_due = last or (not is_saving and pace.is_due(step, time.monotonic()))
        preview_due = step in hooks.preview_steps
        wishes = hooks.wished()
        if checkpoint_due or preview_due or wishes or log.is_full:
            log.flush()
        if last or preview_due or wishes:
            log.report()
        if checkpoint_due:
            hooks.save_checkpoint(step, last)
            pace.saved(step, time.monotonic())
        if preview_due:
            hooks.make_previews(step)
        for wish in (one for one in Wish if one in wishes):
            hooks.grant(wish, step)
        if checkpoint_due or preview_due or wishes:
            log.restart_clock()


def learning_rate(spec: TrainingSpec, step: int) -> float:
    """Of the update after ``step`` updates: falls linearly to its final fraction (1.8)."""
    fraction = 1 + (spec.final_lr_fraction - 1) * step / spec.num_steps
    return spec.learning_rate * fraction


class MetricsLog:
    """Collects each step's numbers on the device; flushed, they are lines. Of every `FLUSH_EVERY`
    lines comes an event: a point of the curve is a mean of as many steps, though a checkpoint may
    flush in between."""

    def __init__(self, spec: TrainingSpec, path: Path, events: EventLog, step: int) -> None:
        self._spec = spec
        self._path = path
        self._events = events
        self._flushed_step = step
        self.first_step = step + 1
        self._pending: list[Tensor] = []
        self._unreported: list[dict[str, Any]] = []
        self._elapsed_s = 0.0
        """Of the steps that were not reported yet."""
        self._since = time.monotonic()
        self._step_times_s: list[float] = []

    @property
    def median_step_time_s(self) -> float | None:
        return median(self._step_times_s) if self._step_times_s else None

    @property
    def is_full(self) -> bool:
        return len(self._unreported) + len(self._pending) >= FLUSH_EVERY

    def add(self, numbers: Tensor) -> None:
        self._pending.append(numbers)

    def restart_clock(self) -> None:
        """What passed since the last flush was not spent on steps."""
        self._since = time.monotonic()

    def flush(self) -> None:
        """Write the pending steps to metrics.jsonl; `report` what is enough for a point.

        Raises `DivergedError` at the first step whose loss or gradient is NaN or Inf.
        """
        if not self._pending:
            return
        rows: list[list[float]] = torch.stack(self._pending).tolist()
        self._pending.clear()
        with self._path.open("a", encoding="utf-8") as file:
            for step, (loss, video, audio, norm) in enumerate(rows, start=self._flushed_step + 1):
                _check_finite(step, loss, norm)
                line = {
                    "step": step,
                    "loss": loss,
                    "loss_video": video,
                    "loss_audio": None if audio != audio else audio,
                    "lr": learning_rate(self._spec, step - 1),
                    "grad_norm": norm,
                }
                file.write(json.dumps(line, allow_nan=False) + "\n")
                self._unreported.append(line)
        self._flushed_step += len(rows)
        now = time.monotonic()
        self._elapsed_s += now - self._since
        self._since = now
        if len(self._unreported) >= FLUSH_EVERY:
            self.report()

    def report(self) -> None:
        """The means of what was flushed since the last one, as one `step` event."""
        if not self._unreported:
            return
        lines, self._unreported = self._unreported, []
        step_time_s, self._elapsed_s = self._elapsed_s / len(lines), 0.0
        self._step_times_s.append(step_time_s)
        remaining = self._spec.num_steps - self._flushed_step

        def mean(key: str) -> float | None:
            values = [line[key] for line in lines if line[key] is not None]
            return sum(values) / len(values) if values else None

        self._events.emit(
            "step",
            step=self._flushed_step,
            of=self._spec.num_steps,
            loss=mean("loss"),
            loss_video=mean("loss_video"),
            loss_audio=mean("loss_audio"),
            lr=lines[-1]["lr"],
            step_time_s=round(step_time_s, 4),
            eta_s=round(step_time_s * remaining, 1),
        )


def _check_finite(step: int, loss: float, norm: float) -> None:
    for name, value in (("loss", loss), ("gradient", norm)):
        if not abs(value) < float("inf"):
            raise DivergedError(
                f"The {name} became {value} at step {step}: the training diverged. Use a lower "
                "learning rate, and look for broken clips in the dataset report."
            )
