"""What a training would cost, take and need, before it is submitted; and what all estimates share.

The price is fal's. Times are medians of what this service measured, with how many and when, or null
with the reason. Memory is the trainer's own arithmetic (`trainer/capacity.py`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import median
from typing import Final, TypeVar

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.clock import iso8601
from app.modes.base import AnyMode, AnyTraining
from app.modes.common import TrainerRequest
from app.requests import measurements
from app.requests.measurements import Finished, Measured
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
    """Of one training sample, or of the generated video; they decide time and memory."""

    video: int
    audio: int
    assumes: list[str] = Field(description="What only the dataset can tell, taken as it may be.")


class Seconds(BaseModel):
    """An expected time, or why there is none."""

    seconds: float | None
    measurements: int = Field(
        default=0, description="Finished requests that this is the median of."
    )
    newest: str | None = Field(
        default=None, description="When the last of them ended; ISO 8601, UTC."
    )
    scaled_by_tokens: bool = Field(
        default=False, description="None was of this size: theirs were scaled in proportion."
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
    """How the trainer would fit this onto a device with so much free memory."""

    device: str = Field(description="A usual card, or the device that was measured here.")
    free_bytes: int
    plan: str | None = Field(description="What would be chosen and why; null: it does not fit.")


class Memory(BaseModel):
    """Of the GPU while it works, in bytes."""

    least_bytes: int | None = Field(
        description="About; quantised, every block offloaded and, in a training, recomputed."
    )
    full_speed_bytes: int | None = Field(description="About; with nothing of that.")
    measured_peak_bytes: int | None = Field(
        description="The most of any measured request with as many tokens and, if it trains, rank."
    )
    fits: list[Fit] = Field(
        default=[], description="What the trainer would choose; a training proves it by a step."
    )
    reason: str | None = None


TINY_MEMORY: Final = "The tiny model is a stand-in of 5 million parameters; it needs no GPU."
NOT_MEASURED: Final = "Computed from the model's size; none was measured here yet."


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
    steps = median_of(
        measured,
        lambda one: one.step_time_s * request.number_of_steps,
        size=lambda one: one.video_tokens + one.audio_tokens,
        wanted=wanted,
    )
    spec = mode.training_spec(request).validation
    num_previews = len(spec.prompts) * len({*spec.at, 1.0})
    if num_previews:
        previews = median_of(
            [one for one in measured if one.num_previews],
            lambda one: one.previews_s / one.num_previews * num_previews,
            size=lambda one: one.preview_tokens,
            wanted=num_video_tokens(spec.num_frames, spec.height, spec.width),
            reason="No training of this mode with previews has finished here yet.",
        )
    else:
        previews = Seconds(seconds=0.0)
    parts = {
        "prepare": median_of(measured, lambda one: one.prepare_s),
        "steps": steps,
        "previews": previews,
        "rest": median_of(measured, lambda one: one.rest_s),
    }
    total, reason = total_of(parts.values())
    device = measured[0].device if measured else None
    return Time(total_seconds=total, device=device, reason=reason, **parts)


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
        return Memory(
            least_bytes=None, full_speed_bytes=None, measured_peak_bytes=peak, reason=TINY_MEMORY
        )
    work = Workload(tokens.video, request.rank, with_audio=tokens.audio > 0)
    return Memory(
        least_bytes=least_bytes(work, MachineSettings(), supports_float8=True),
        full_speed_bytes=bytes_needed(Plan(), work),
        measured_peak_bytes=peak,
        fits=[_fit(name, free, work) for name, free in devices(measured)],
        reason=None if peaks else NOT_MEASURED,
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


def devices(measured: Sequence[Finished]) -> list[tuple[str, int]]:
    """Names and free bytes: the one that was measured here, if it is a GPU, and usual cards."""
    here = [
        (one.device, int(one.device_memory_bytes * _FREE_PART))
        for one in measured[:1]
        if one.device_memory_bytes is not None
    ]
    return here + [(name, int(size * _FREE_PART)) for name, size in CARDS.items()]


def _fit(device: str, free: int, work: Workload) -> Fit:
    plan = choose(work, free, MachineSettings(), supports_float8=True)
    return Fit(device=device, free_bytes=free, plan=None if plan is None else plan.describe())


M = TypeVar("M", bound=Finished)


def median_of(
    measured: Sequence[M],
    value: Callable[[M], float | None],
    *,
    size: Callable[[M], int] | None = None,
    wanted: int = 0,
    reason: str = NO_MEASUREMENTS,
) -> Seconds:
    """Of those that are as large as ``wanted``, or else of all in proportion to their size. What
    has no value does not count."""
    found = [(one, seconds) for one in measured if (seconds := value(one)) is not None]
    if not found:
        return Seconds(seconds=None, reason=reason)
    scaled = False
    if size is not None:
        equal = [(one, seconds) for one, seconds in found if size(one) == wanted]
        scaled = not equal
        found = equal or [(one, seconds * wanted / size(one)) for one, seconds in found]
    return Seconds(
        seconds=round(median(seconds for _, seconds in found), 1),
        measurements=len(found),
        newest=iso8601(max(one.finished_at for one, _ in found)),
        scaled_by_tokens=scaled,
    )


def total_of(parts: Iterable[Seconds]) -> tuple[float | None, str | None]:
    """The sum, or why there is none."""
    parts = list(parts)
    known = [part.seconds for part in parts if part.seconds is not None]
    if len(known) < len(parts):
        return None, next(part.reason for part in parts if part.reason is not None)
    return round(sum(known), 1), None
