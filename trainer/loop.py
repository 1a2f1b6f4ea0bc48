"""The training loop: one update per step, and what happens between two of them.

Everything that a step depends on is its number, the adapter and the optimizer's moments: so a
resumed training is the uninterrupted one. Losses stay on the device until they are flushed, so no
step waits for the host.
"""

import json
import time
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
from trainer.checkpoint import Checkpoint, restore_optimizer
from trainer.errors import CapacityError, DivergedError
from trainer.examples import Examples
from trainer.execution import checkpoint_blocks
from trainer.flow import Draws, Example, draw, velocity_loss
from trainer.job import Control
from trainer.policy import num_blocks_to_checkpoint
from trainer.spec import TrainingSpec
from trainer.timesteps import sample_index, step_generator

FLUSH_EVERY = 10
"""Steps between two readings of the losses; each makes the host wait for the device once."""


class Stopped(Exception):
    """The caller told the trainer to stop; what was to be saved is saved."""

    def __init__(self, control: Control) -> None:
        super().__init__(control.value)
        self.control = control


@dataclass(frozen=True)
class Hooks:
    """What the loop calls between steps; all of it is run.py's business."""

    told: Callable[[], Control | None]
    save_checkpoint: Callable[[int], None]
    """After this many updates."""
    make_previews: Callable[[int], None]
    checkpoint_every: int
    preview_steps: tuple[int, ...]
    """Empty where there is nothing to preview."""


class Trainer:
    """Adapter and optimizer on a frozen transformer. ``step`` counts the updates so far."""

    def __init__(
        self, transformer: LTX2VideoTransformer3DModel, spec: TrainingSpec, *, with_audio: bool
    ) -> None:
        self.transformer = transformer
        self.spec = spec
        self.step = 0
        self.device = transformer.proj_in.weight.device
        self.parameters: list[nn.Parameter] = add_adapter(
            transformer, spec.rank, with_audio, seed=spec.seed
        )
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=spec.learning_rate,
            weight_decay=spec.weight_decay,
            fused=self.device.type == "cuda",
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        load_adapter_state(self.transformer, checkpoint.adapter)
        restore_optimizer(self.optimizer, checkpoint.optimizer)
        self.step = checkpoint.step

    def adapter(self) -> dict[str, Tensor]:
        return adapter_state(self.transformer)

    def plan_memory(self, example: Example) -> int:
        """Choose how many blocks to recompute in the backward pass; returns their number."""
        count = num_blocks_to_checkpoint(self.transformer, example, self.device)
        checkpoint_blocks(self.transformer, count)
        return count

    def update(self, example: Example, draws: Draws | None = None) -> Tensor:
        """One step on ``example`` with ``draws``, or those of the step's own number. Returns [4],
        on the device: loss, video loss, audio loss (NaN where there is none) and the gradient's
        norm before clipping.

        Raises `CapacityError` when the step does not fit even with every block recomputed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.step)
        if draws is None:
            draws = draw(example, step_generator(self.spec.seed, self.step))
        losses = self._backward(example, draws)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.spec.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return torch.cat([losses, norm.detach()[None]])

    def _backward(self, example: Example, draws: Draws) -> Tensor:
        with suppress(torch.OutOfMemoryError):
            return self._forward_backward(example, draws)
        # Once more with the same random numbers and everything recomputed.
        self.optimizer.zero_grad(set_to_none=True)
        checkpoint_blocks(self.transformer, len(self.transformer.transformer_blocks))
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return self._forward_backward(example, draws)
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"A training step on {example.video.tokens.shape[1]} tokens with rank "
                f"{self.spec.rank} does not fit on this device. Use fewer frames, a lower "
                "resolution, a lower rank, or a device with more memory."
            ) from error

    def _forward_backward(self, example: Example, draws: Draws) -> Tensor:
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"
        ):
            losses = velocity_loss(self.transformer, example, draws)
        losses.total.backward()
        audio = losses.total.new_tensor(float("nan")) if losses.audio is None else losses.audio
        return torch.stack([losses.total, losses.video, audio]).detach()


def train(
    trainer: Trainer, examples: Examples, hooks: Hooks, metrics: Path, events: EventLog
) -> float | None:
    """Train from ``trainer.step`` to the spec's last step.

    Order after a step: checkpoint, previews, then the caller's wishes. A resumed training first
    makes the previews that were due at its step, should the interruption have cost them.
    Raises `Stopped` (after saving a checkpoint), `DivergedError`, `CapacityError`.

    Returns:
        The median of the seconds that a step took; None where none was left to do.
    """
    spec = trainer.spec
    log = MetricsLog(spec, metrics, events, trainer.step)
    if trainer.step in hooks.preview_steps:
        hooks.make_previews(trainer.step)
    while trainer.step < spec.num_steps:
        if control := hooks.told():
            log.flush()
            hooks.save_checkpoint(trainer.step)
            raise Stopped(control)
        index = sample_index(spec.seed, trainer.step, len(examples))
        log.add(trainer.update(examples[index]))
        step = trainer.step
        last = step == spec.num_steps
        checkpoint_due = last or step % hooks.checkpoint_every == 0
        preview_due = step in hooks.preview_steps
        if checkpoint_due or preview_due or log.is_full:
            log.flush()
        if checkpoint_due:
            hooks.save_checkpoint(step)
        if preview_due:
            hooks.make_previews(step)
        if checkpoint_due or preview_due:
            log.restart_clock()
    return log.median_step_time_s


def learning_rate(spec: TrainingSpec, step: int) -> float:
    """Of the update after ``step`` updates: falls linearly to its final fraction (1.8)."""
    fraction = 1 + (spec.final_lr_fraction - 1) * step / spec.num_steps
    return spec.learning_rate * fraction


class MetricsLog:
    """Collects each step's numbers on the device; flushed, they are lines and one event."""

    def __init__(self, spec: TrainingSpec, path: Path, events: EventLog, step: int) -> None:
        self._spec = spec
        self._path = path
        self._events = events
        self._flushed_step = step
        self._pending: list[Tensor] = []
        self._since = time.monotonic()
        self._step_times_s: list[float] = []

    @property
    def median_step_time_s(self) -> float | None:
        return median(self._step_times_s) if self._step_times_s else None

    @property
    def is_full(self) -> bool:
        return len(self._pending) >= FLUSH_EVERY

    def add(self, numbers: Tensor) -> None:
        self._pending.append(numbers)

    def restart_clock(self) -> None:
        """What passed since the last flush was not spent on steps."""
        self._since = time.monotonic()

    def flush(self) -> None:
        """Write the pending steps to metrics.jsonl, and their mean loss as one `step` event.

        Raises `DivergedError` at the first step whose loss or gradient is NaN or Inf.
        """
        if not self._pending:
            return
        rows: list[list[float]] = torch.stack(self._pending).tolist()
        self._pending.clear()
        lines = []
        with self._path.open("a", encoding="utf-8") as file:
            for step, (loss, video, audio, norm) in enumerate(rows, start=self._flushed_step + 1):
                _check_finite(step, loss, norm)
                lines.append(
                    {
                        "step": step,
                        "loss": loss,
                        "loss_video": video,
                        "loss_audio": None if audio != audio else audio,
                        "lr": learning_rate(self._spec, step - 1),
                        "grad_norm": norm,
                    }
                )
                file.write(json.dumps(lines[-1], allow_nan=False) + "\n")
        self._flushed_step += len(rows)
        self._report(lines)

    def _report(self, lines: list[dict[str, Any]]) -> None:
        now = time.monotonic()
        step_time_s = (now - self._since) / len(lines)
        self._step_times_s.append(step_time_s)
        self._since = now
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
