"""How a training is fitted onto a device: which plans there are, in which order, what each takes.

Arithmetic, importable by the gateway (no torch). The trainer makes a plan before it loads anything,
proves it with a step whose result is thrown away, and goes to the next plan where memory runs out
(`policy.py`); the service tells from the same plans what a request would need.

The order, fastest and most exact first:

1. weights in full precision, as few blocks recomputed as need be: the same numbers, up to 30 % more
   operations;
2. weights in one byte, FP8 where the device multiplies in it, else int8: other numbers, slightly;
3. besides, as few blocks as need be offloaded to the host: slower.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer import capacity
from trainer.capacity import NUM_BLOCKS

SAMPLING_BYTES: Final = 10 * 10**9
"""Left beside the weights for sampling and decoding a preview-sized clip."""
RECOMPUTE_STEP: Final = 4
"""Blocks more that are recomputed when memory ran out: finer steps would try for long."""


class MachineSettings(BaseModel):
    """What the operator wants of the machine; ``auto`` and None let the trainer choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["auto", "full", "fp8", "int8"] = "auto"
    """Of the frozen base. ``auto`` is full wherever that fits."""
    recomputed_blocks: int | None = Field(default=None, ge=0)
    offloaded_blocks: int | None = Field(default=None, ge=0)
    compile: Literal["auto", "on", "off"] = "auto"
    """``auto``: on CUDA, for trainings that are long enough to make up for it."""
    attention: Literal["auto", "fa3", "cudnn", "flash", "efficient", "math"] = "auto"
    """``auto``: the one that is measured to be the fastest at the training's size."""


@dataclass(frozen=True)
class Workload:
    """What of a training decides how much memory it takes."""

    num_tokens: int
    """Of the video of one sample."""
    rank: int
    with_audio: bool


@dataclass(frozen=True)
class Plan:
    """One way to fit a training onto a device."""

    precision: Literal["full", "fp8", "int8"] = "full"
    num_recomputed: int = 0
    """Blocks whose activations are not kept."""
    num_offloaded: int = 0
    """Blocks whose weights are on the host; then every block is recomputed."""
    reason: str = "everything fits"

    def describe(self, num_blocks: int = NUM_BLOCKS) -> str:
        """For the log.

        >>> Plan("fp8", 48, 6, "24.0 GB are free").describe()
        'base in fp8, 48 of 48 blocks recomputed, 6 offloaded to the host: 24.0 GB are free'
        """
        base = "full precision" if self.precision == "full" else self.precision
        text = f"base in {base}, {self.num_recomputed} of {num_blocks} blocks recomputed"
        if self.num_offloaded:
            text += f", {self.num_offloaded} offloaded to the host"
        return f"{text}: {self.reason}"


def bytes_needed(plan: Plan, work: Workload) -> int:
    """Device memory of an LTX-2.3 training under ``plan``; an estimate (`ltx-training.md` 5.3)."""
    audio = work.with_audio
    adapter = capacity.ADAPTER_PARAMETERS_PER_RANK[audio] * work.rank
    per_block = capacity.activation_bytes_per_block(work.num_tokens, with_audio=audio)
    boundary = work.num_tokens * capacity.WIDTH * capacity.BYTES_PER_BOUNDARY
    kept = NUM_BLOCKS - plan.num_recomputed
    return (
        weight_bytes(plan, with_audio=audio)
        + adapter * capacity.BYTES_PER_ADAPTER_PARAMETER
        + kept * per_block
        + (plan.num_recomputed * boundary + per_block if plan.num_recomputed else 0)
        + capacity.RESERVED_BYTES
    )


def weight_bytes(plan: Plan, *, with_audio: bool) -> int:
    """Of LTX-2.3's transformer, what is on the device: two places for offloaded blocks included."""
    block = capacity.BLOCK_BYTES[with_audio]
    saved = 0
    if plan.precision != "full":
        inner = NUM_BLOCKS - 2 * capacity.FULL_PRECISION_BLOCKS
        saved = inner * capacity.QUANTISED_PARAMETERS_PER_BLOCK[with_audio]
        block -= capacity.QUANTISED_PARAMETERS_PER_BLOCK[with_audio]
    if plan.num_offloaded:
        saved += plan.num_offloaded * block - 2 * capacity.BLOCK_BYTES[with_audio]
    return capacity.WEIGHT_BYTES[with_audio] - saved


def choose(
    work: Workload, budget_bytes: int, settings: MachineSettings, *, supports_float8: bool
) -> Plan | None:
    """The first plan whose estimate fits into ``budget_bytes``; None where none does.

    What ``settings`` say is not chosen, and a plan in which it is all said is taken as it is.
    """
    plans = list(_in_order(settings, supports_float8=supports_float8))
    forced = len(plans) == 1
    for plan in plans:
        needed = bytes_needed(plan, work)
        if forced or needed <= budget_bytes:
            reason = f"about {_gb(needed)} needed, {_gb(budget_bytes)} free"
            return replace(plan, reason="as the settings say; " + reason if forced else reason)
    return None


def choose_for_sampling(
    budget_bytes: int, *, with_audio: bool, supports_float8: bool
) -> Plan | None:
    """How the base is loaded for sampling alone: in full where it fits beside what sampling takes,
    else in one byte, and else with blocks on the host; None where not even that fits."""
    for plan in sampling_plans(supports_float8=supports_float8):
        needed = weight_bytes(plan, with_audio=with_audio) + SAMPLING_BYTES
        if needed <= budget_bytes:
            return replace(plan, reason=f"about {_gb(needed)} needed, {_gb(budget_bytes)} free")
    return None


def sampling_plans(*, supports_float8: bool) -> Iterator[Plan]:
    """The fastest and most exact first."""
    quantised: Literal["fp8", "int8"] = "fp8" if supports_float8 else "int8"
    yield Plan()
    for count in range(NUM_BLOCKS + 1):
        yield Plan(quantised, 0, count)


def least_bytes(work: Workload, settings: MachineSettings, *, supports_float8: bool) -> int:
    """What the smallest plan needs that ``settings`` allow."""
    plans = _in_order(settings, supports_float8=supports_float8)
    return min(bytes_needed(plan, work) for plan in plans)


def next_plan(
    plan: Plan,
    settings: MachineSettings,
    *,
    num_blocks: int,
    precision: Literal["fp8", "int8"] | None,
) -> Plan | None:
    """What to try when ``plan`` ran out of memory; None when nothing is left.

    ``precision`` is what the base may be quantised to; None when it may not be any more: a training
    that has begun keeps its numbers.
    """
    reason = "memory ran out before"
    if settings.recomputed_blocks is None and plan.num_recomputed < num_blocks:
        more = min(num_blocks, plan.num_recomputed + RECOMPUTE_STEP)
        return replace(plan, num_recomputed=more, reason=reason)
    if precision and settings.precision == "auto" and plan.precision == "full":
        return replace(plan, precision=precision, reason=reason)
    may_offload = settings.offloaded_blocks is None and plan.num_recomputed >= num_blocks
    if may_offload and plan.num_offloaded < num_blocks:
        more = min(num_blocks, plan.num_offloaded + max(1, num_blocks // 4))
        return replace(plan, num_offloaded=more, reason=reason)
    return None


def _in_order(settings: MachineSettings, *, supports_float8: bool) -> Iterator[Plan]:
    quantised: Literal["fp8", "int8"] = "fp8" if supports_float8 else "int8"
    auto = settings.precision == "auto"
    precisions = ("full", quantised) if auto else (settings.precision,)
    recomputed = settings.recomputed_blocks
    offloaded = settings.offloaded_blocks
    for precision in precisions:
        for count in range(NUM_BLOCKS + 1) if recomputed is None else [recomputed]:
            if not offloaded:
                yield Plan(precision, count)  # type: ignore[arg-type]
    if offloaded is None and (recomputed is None or recomputed >= NUM_BLOCKS):
        for count in range(1, NUM_BLOCKS + 1):
            yield Plan(precisions[-1], NUM_BLOCKS, count)  # type: ignore[arg-type]
    if offloaded:
        for precision in precisions:
            yield Plan(precision, NUM_BLOCKS, offloaded)  # type: ignore[arg-type]


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
