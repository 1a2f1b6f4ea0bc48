"""Several processes that train one adapter together, each on its own device (`torchrun`).

A step then takes one sample per process, and the update is that of a batch of all of them. Every
process holds the whole model and the same adapter; the gradients are averaged in one message. The
samples are those that a single process would have taken in as many steps, in the same order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor, distributed

from trainer.plan import Plan

Message = TypeVar("Message")

TIMEOUT: Final = timedelta(hours=2)
"""The others wait while the first one encodes or makes previews; who is lost ends all by itself."""


@dataclass(frozen=True)
class NextJob:
    """What the leading process tells the others between two jobs."""

    job_dir: Path | None
    """None: there are no more."""


@dataclass(frozen=True)
class Ready:
    """What the leading process tells the others when everything is encoded."""

    plan: Plan
    checkpoint: Path | None
    """To resume from."""


@dataclass(frozen=True)
class Group:
    """This process among ``size``. Alone, every method does nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process encodes, saves, previews and reports for all."""
        return self.rank == 0

    def sample_number(self, step: int) -> int:
        """Which sample of the training's sequence this process takes in ``step``."""
        return step * self.size + self.rank

    def mean(self, losses: Tensor, gradients: Sequence[Tensor | None]) -> Tensor:
        """Average ``gradients`` in place over all processes; returns the average of ``losses``."""
        if self.size == 1:
            return losses
        parts = [losses, *(gradient for gradient in gradients if gradient is not None)]
        together = torch.cat([part.flatten().float() for part in parts])
        distributed.all_reduce(together)
        together /= self.size
        means = together.split([part.numel() for part in parts])
        for part, mean in zip(parts[1:], means[1:], strict=True):
            part.copy_(mean.view_as(part))
        return means[0].view_as(losses)

    def tell(self, message: Message | None) -> Message:
        """What the leading process says, to all; the others wait for it. By way of the host, so
        the device goes on computing."""
        if self.size == 1:
            assert message is not None
            return message
        told = [message]
        distributed.broadcast_object_list(told, src=0, group=_host_group())
        (heard,) = told
        return heard  # type: ignore[return-value]


ALONE: Final = Group()


def join_group(device: torch.device) -> Group:
    """The group that `torchrun` has started this process in; `ALONE` without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT)
    return Group(distributed.get_rank(), size)


def dismiss(group: Group) -> None:
    """Tell the others that there are no more jobs. Not after a job that failed: they may be waiting
    for something else, and `torchrun` ends them."""
    if group.size > 1:
        group.tell(NextJob(None))
        distributed.destroy_process_group()


_host: list[distributed.ProcessGroup] = []


def _host_group() -> distributed.ProcessGroup | None:
    if not _host:
        _host.append(distributed.new_group(backend="gloo", timeout=TIMEOUT))
    return _host[0]
