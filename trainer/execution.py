"""How the transformer's blocks are run on this machine; what they compute is in `blocks.py`.

- recomputed: the first blocks keep no activations, the backward pass runs them again. The first
  ones, because their second run comes last, when the others' activations are gone.
- compiled: one graph for all blocks, with static shapes, where gradients are wanted. Previews have
  other shapes and few calls, so they run as they are.
- offloaded: a block's frozen weights are on the host and come to the device for their turn
  (`offload.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.blocks import run_block
from trainer.plan import MachineSettings

# No block draws random numbers, so there is no RNG state to keep for the second run.
_recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


class WeightsInTurn(Protocol):
    """Brings a block's weights to the device before the block runs, forward or again."""

    def bring(self, index: int) -> None: ...


@dataclass
class Execution:
    """Of one transformer. Changed between steps, never during one."""

    num_recomputed: int = 0
    compiled: Callable[..., Any] | None = None
    weights: WeightsInTurn | None = None
    """None: every weight is where it is used."""

    def run(self, index: int, block: nn.Module, *args: Any) -> tuple[Tensor, Tensor | None]:
        run: Callable[..., tuple[Tensor, Tensor | None]] = partial(self._run, index)
        if torch.is_grad_enabled() and index < self.num_recomputed:
            run = partial(_recomputed, run)
        return run(block, *args)

    def _run(self, index: int, block: nn.Module, *args: Any) -> tuple[Tensor, Tensor | None]:
        if self.weights is not None:
            self.weights.bring(index)
        if self.compiled is not None and torch.is_grad_enabled():
            result: tuple[Tensor, Tensor | None] = self.compiled(block, *args)
            return result
        return run_block(block, *args)


def execution_of(transformer: LTX2VideoTransformer3DModel) -> Execution:
    """The transformer's own; as loaded, nothing is recomputed, compiled or offloaded."""
    execution: Execution = transformer.__dict__.setdefault("execution", Execution())
    return execution


def checkpoint_blocks(transformer: LTX2VideoTransformer3DModel, num_blocks: int) -> None:
    """Keep no activations of the first ``num_blocks`` blocks; the backward pass runs them again."""
    execution_of(transformer).num_recomputed = num_blocks


def compile_blocks(transformer: LTX2VideoTransformer3DModel, backend: str | None) -> None:
    """Compile the block that all blocks share at its first call; None: as it is written.

    One graph for every block: only their weights differ. Shapes are static within a training.
    """
    compiled = None
    if backend is not None:
        torch._dynamo.config.recompile_limit = _MOST_GRAPHS
        compiled = torch.compile(run_block, backend=backend, dynamic=False, fullgraph=True)
    execution_of(transformer).compiled = compiled


COMPILER: Final = "inductor"
LEAST_COMPILED_STEPS: Final = 300
"""Compiling takes a minute or more; 10 to 25 % of each step are saved (`ltx-training.md` 5.4)."""
_MOST_GRAPHS: Final = 64
"""Shapes and precisions that a process which stays between jobs may come to see."""


def wants_compiling(machine: MachineSettings, device: torch.device, num_steps: int) -> bool:
    """Whether a training of so many steps more is worth compiling the blocks."""
    if machine.compile != "auto":
        return machine.compile == "on"
    return device.type == "cuda" and num_steps >= LEAST_COMPILED_STEPS
