"""What a training would cost, take and need, before it is submitted.

The price is fal's. Times are medians of what this service measured, with how many and when, or null
with the reason. Memory is the trainer's own arithmetic (`trainer/capacity.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Final

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.modes.base import AnyMode, AnyTraining
from app.modes.common import TrainerRequest
from app.requests import measurements
from app.requests.measurements import Measured
from preprocessing.rules import AudioPolicy
from trainer.capacity import (
    TINY,
    model_id,
    num_audio_latents,
    num_video_tokens,
)
from trainer.plan import MachineSettings, Plan, Workload, bytes_needed, choose, least_bytes

NO_MEASUREMENTS: Final = (
    "No training of this mode with this model has finished here yet, so nothing was measured."
)


@dataclass(frozen=True)
class DatasetFacts:
    """What a prepared dataset turned out to be, where it is known."""

    num_frames: int
    with_audio: bool


class Price(BaseModel):
    usd: float = Field(description="What fal charges for it. This service charges nothing.")
    billable_units: int = Field(description="Steps of a training, megapixels of a generation.")
    usd_per_unit: float


class Tokens(BaseModel):
    """Of one training sample; they decide time and memory."""

    video: int
    audio: int
    assumes: list[str] = Field(description="What only the dataset can tell, taken as it may be.")


class Seconds(BaseModel):
    """An expected time, or why there is none."""

    seconds: float | None
    measurements: int = Field(
        default=0, description="Finished trainings that this is the median of."
    )
    newest: str | None = Field(
        default=None, description="When the last of them ended; ISO 8601, UTC."
    )
    scaled_by_tokens: bool = Field(
        default=False, description="None had as many tokens: theirs were scaled in proportion."
    )
    reason: str | None = None


class Time(BaseModel):
    """Without waiting in the queue."""

    total_seconds: float | None
    device: str | None = Field(description="What the measurements were made on.")
    prepare: Seconds = Field(description="Download and preparation; archives differ.")
    steps: Seconds
    previews: Seconds
    rest: Seconds = Field(description="Loading, encoding, checkpoints, storing; datasets differ.")
    reason: str | None = None


class Fit(BaseModel):
    """How the trainer would fit this training onto a device with so much free memory."""

    device: str = Field(description="A usual card, or the device that was measured here.")
    free_bytes: int
    plan: str | None = Field(description="What would be chosen and why; null: it does not fit.")


class Memory(BaseModel):
    """Of the GPU while it trains, in bytes."""

    least_bytes: int | None = Field(
        description="About; quantised, with every block recomputed and offloaded."
    )
    full_speed_bytes: int | None = Field(description="About; with none recomputed.")
    measured_peak_bytes: int | None = Field(
        description="The most of any measured training with as many tokens and this rank."
    )
    fits: list[Fit] = Field(
        default=[], description="What the trainer would choose; it proves it by a step."
    )
    reason: str | None = None


class Estimate(BaseModel):
    endpoint: str
    model: str
    price: Price
    tokens: Tokens
    time: Time
    memory: Memory


def estimate(
    session: Session,
    mode: AnyTraining,
    request: TrainerRequest,
    model: str,
    facts: DatasetFacts | None = None,
) -> Estimate:
    """For ``request``; ``facts`` of its dataset take the place of assumptions."""
    tokens = tokens_of(mode, request, facts)
    model = model_id(model)
    measured = measurements.newest(session, mode.path, model)
    # Machines differ; what was measured last is what there is now.
    measured = [one for one in measured if one.device == measured[0].device]
    return Estimate(
        endpoint=mode.id,
        model=model,
        price=price_of(mode, mode.billable_units(request)),
        tokens=tokens,
        time=time_of(mode, request, tokens, measured),
        memory=memory_of(mode, request, tokens, model, measured),
    )


def price_of(mode: AnyMode, units: int) -> Price:
    return Price(
        usd=float(mode.price_per_unit * units),
        billable_units=units,
        usd_per_unit=float(mode.price_per_unit),
    )


def tokens_of(mode: AnyTraining, request: TrainerRequest, facts: DatasetFacts | None) -> Tokens:
    rule = mode.dataset_rule(request)
    assumes = []
    if facts is not None:
        num_frames, with_audio = facts.num_frames, facts.with_audio
    else:
        num_frames, with_audio = rule.num_frames, rule.audio != AudioPolicy.OFF
        if rule.image_extensions:
            assumes.append("The archive holds videos; images have one frame and take far less.")
        if rule.audio == AudioPolicy.AUTO:
            assumes.append("Every clip has sound, so sound is trained; otherwise it takes less.")
    return Tokens(
        video=num_video_tokens(num_frames, rule.height, rule.width),
        audio=num_audio_latents(num_frames, Fraction(rule.frame_rate)) * with_audio,
        assumes=assumes,
    )


def time_of(
    mode: AnyTraining, request: TrainerRequest, tokens: Tokens, measured: Sequence[Measured]
) -> Time:
    wanted = tokens.video + tokens.audio
    steps = _median(
        measured,
        lambda one: one.step_time_s * request.number_of_steps,
        tokens=lambda one: one.video_tokens + one.audio_tokens,
        wanted=wanted,
    )
    spec = mode.training_spec(request).validation
    num_previews = len(spec.prompts) * len({*spec.at, 1.0})
    if num_previews:
        previews = _median(
            [one for one in measured if one.num_previews],
            lambda one: one.previews_s / one.num_previews * num_previews,
            tokens=lambda one: one.preview_tokens,
            wanted=num_video_tokens(spec.num_frames, spec.height, spec.width),
            reason="No training of this mode with previews has finished here yet.",
        )
    else:
        previews = Seconds(seconds=0.0)
    parts = {
        "prepare": _median([m for m in measured if m.prepare_s is not None], _prepare_s),
        "steps": steps,
        "previews": previews,
        "rest": _median([m for m in measured if m.rest_s is not None], _rest_s),
    }
    known = [part.seconds for part in parts.values() if part.seconds is not None]
    complete = len(known) == len(parts)
    reasons = [part.reason for part in parts.values() if part.reason is not None]
    return Time(
        total_seconds=round(sum(known), 1) if complete else None,
        device=measured[0].device if measured else None,
        reason=None if complete else reasons[0],
        **parts,
    )


def memory_of(
    mode: AnyTraining,
    request: TrainerRequest,
    tokens: Tokens,
    model: str,
    measured: Sequence[Measured],
) -> Memory:
    peaks = [
        one.peak_memory_bytes
        for one in measured
        if one.peak_memory_bytes is not None
        and (one.video_tokens, one.audio_tokens) == (tokens.video, tokens.audio)
        and one.rank == request.rank
    ]
    peak = max(peaks, default=None)
    if model == TINY:
        reason = "The tiny model is a stand-in of 5 million parameters; it needs no GPU."
        return Memory(
            least_bytes=None, full_speed_bytes=None, measured_peak_bytes=peak, reason=reason
        )
    work = Workload(tokens.video, request.rank, with_audio=tokens.audio > 0)
    return Memory(
        least_bytes=least_bytes(work, MachineSettings(), supports_float8=True),
        full_speed_bytes=bytes_needed(Plan(), work),
        measured_peak_bytes=peak,
        fits=[_fit(name, free, work) for name, free in _devices(measured)],
        reason=None if peaks else "Computed from the model's size; none was measured here yet.",
    )


CARDS: Final = {
    "24 GB card": 24 * 10**9,
    "32 GB card": 32 * 10**9,
    "48 GB card": 48 * 10**9,
    "80 GB card": 80 * 10**9,
    "141 GB card": 141 * 10**9,
}
"""What usual cards have, in the maker's gigabytes."""
_FREE_PART: Final = 0.96
"""Of a card's memory: the driver and a context take the rest."""


def _devices(measured: Sequence[Measured]) -> list[tuple[str, int]]:
    here = [
        (one.device, int(one.device_memory_bytes * _FREE_PART))
        for one in measured[:1]
        if one.device_memory_bytes is not None
    ]
    return here + [(name, int(size * _FREE_PART)) for name, size in CARDS.items()]


def _fit(device: str, free: int, work: Workload) -> Fit:
    plan = choose(work, free, MachineSettings(), supports_float8=True)
    return Fit(device=device, free_bytes=free, plan=None if plan is None else plan.describe())


def _prepare_s(one: Measured) -> float:
    return one.prepare_s or 0.0


def _rest_s(one: Measured) -> float:
    return one.rest_s or 0.0


def _median(
    measured: Sequence[Measured],
    value: Callable[[Measured], float],
    *,
    tokens: Callable[[Measured], int] | None = None,
    wanted: int = 0,
    reason: str = NO_MEASUREMENTS,
) -> Seconds:
    """Of those with ``wanted`` tokens, or else of all in proportion to their tokens."""
    if not measured:
        return Seconds(seconds=None, reason=reason)
    if tokens is None:
        used, values = list(measured), [value(one) for one in measured]
        scaled = False
    else:
        equal = [one for one in measured if tokens(one) == wanted]
        used, scaled = equal or list(measured), not equal
        values = [value(one) * wanted / tokens(one) for one in used]
    return Seconds(
        seconds=round(median(values), 1),
        measurements=len(values),
        newest=iso8601(max(one.finished_at for one in used)),
        scaled_by_tokens=scaled,
    )
