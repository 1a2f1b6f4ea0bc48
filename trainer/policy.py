"""The memory policy at work: plan, prove by a step, fall back (`ltx-training.md` 5.3).

The plans and their order are in `plan.py`, their numbers in `capacity.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from diffusers import LTX2VideoTransformer3DModel

from trainer import plan as plans
from trainer.capacity import NUM_BLOCKS
from trainer.errors import CapacityError
from trainer.execution import checkpoint_blocks, execution_of
from trainer.offload import OffloadedWeights, offload_blocks
from trainer.plan import MachineSettings, Plan, Workload
from trainer.quantised import quantise, quantised_to, supports_float8

_PROBED_BLOCKS = 4
"""Kept in the second of two measured steps; their memory is what a kept block takes."""
_HEADROOM = 0.96
"""Of the free memory, what a plan may come to fill: allocations fragment."""


def first_plan(
    work: Workload, device: torch.device, settings: MachineSettings, num_blocks: int
) -> Plan:
    """Before anything is loaded. Raises `CapacityError` where no plan can fit.

    The CPU's memory is large where models are small, and a model of another depth is a small one:
    there, everything is kept unless ``settings`` say otherwise.
    """
    if device.type != "cuda" or num_blocks != NUM_BLOCKS:
        offloaded = min(num_blocks, settings.offloaded_blocks or 0)
        recomputed = num_blocks if offloaded else min(num_blocks, settings.recomputed_blocks or 0)
        precision = "full" if settings.precision == "auto" else settings.precision
        forced = (precision, recomputed, offloaded) != ("full", 0, 0)
        reason = "as the settings say" if forced else "so small a model fits"
        return Plan(precision, recomputed, offloaded, reason)
    budget = free_bytes(device)
    float8 = supports_float8(device)
    plan = plans.choose(work, budget, settings, supports_float8=float8)
    if plan is None:
        least = plans.least_bytes(work, settings, supports_float8=float8)
        raise CapacityError(
            f"A training on {work.num_tokens} tokens with rank {work.rank} needs about "
            f"{least / 1e9:.0f} GB on this device, and {budget / 1e9:.0f} GB are free. Use fewer "
            "frames, a lower resolution, a lower rank, or a device with more memory."
        )
    return plan


def sampling_plan(device: torch.device, num_blocks: int, *, with_audio: bool) -> Plan:
    """How the base is loaded for sampling alone (`plan.choose_for_sampling`). Where nothing fits,
    the least is tried."""
    if device.type != "cuda" or num_blocks != NUM_BLOCKS:
        return Plan()
    float8 = supports_float8(device)
    plan = plans.choose_for_sampling(
        free_bytes(device), with_audio=with_audio, supports_float8=float8
    )
    return plan or list(plans.sampling_plans(supports_float8=float8))[-1]


def free_bytes(device: torch.device) -> int:
    """What a new training can have of ``device``: what is free, and what this process has."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free + torch.cuda.memory_reserved(device))


def apply_plan(transformer: LTX2VideoTransformer3DModel, plan: Plan, device: torch.device) -> None:
    """Make a loaded transformer run as ``plan`` says. Precision only ever goes down."""
    if plan.precision != "full" and quantised_to(transformer) == "full":
        offload_blocks(transformer, 0, device)
        quantise(transformer, plan.precision)
    weights = execution_of(transformer).weights
    present = len(weights.indices) if isinstance(weights, OffloadedWeights) else 0
    if present != plan.num_offloaded:
        offload_blocks(transformer, plan.num_offloaded, device)
    checkpoint_blocks(transformer, plan.num_recomputed)


def fall_back(
    plan: Plan,
    settings: MachineSettings,
    device: torch.device,
    *,
    num_blocks: int,
    has_begun: bool,
) -> Plan | None:
    """The plan after ``plan``; None where nothing is left to try."""
    precision: Literal["fp8", "int8"] | None = None
    if not has_begun:
        precision = "fp8" if supports_float8(device) else "int8"
    return plans.next_plan(plan, settings, num_blocks=num_blocks, precision=precision)


def fewer_recomputed(
    plan: Plan,
    step_peak_bytes: Callable[[Plan], int],
    budget_bytes: int,
    *,
    num_blocks: int,
) -> Plan:
    """``plan`` with as many blocks kept as really fit: two steps tell what a block takes.

    ``step_peak_bytes`` runs a step under a plan and returns the most memory it held. A compiled
    block keeps far less than the estimate says.
    """
    if not plan.num_recomputed or plan.num_offloaded:
        return plan
    everything = step_peak_bytes(replace(plan, num_recomputed=num_blocks))
    some = step_peak_bytes(replace(plan, num_recomputed=num_blocks - _PROBED_BLOCKS))
    per_block = max(1, (some - everything) // _PROBED_BLOCKS)
    budget = int(budget_bytes * _HEADROOM)
    kept = max(0, min(num_blocks, (budget - everything) // per_block))
    reason = (
        f"{everything / 1e9:.1f} GB measured with all recomputed, {per_block / 1e9:.2f} GB a kept "
        f"block, {budget_bytes / 1e9:.1f} GB free"
    )
    return replace(plan, num_recomputed=num_blocks - kept, reason=reason)
