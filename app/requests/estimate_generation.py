"""What a generation would cost, take and need, and how large it is, before it is submitted."""

from collections.abc import Sequence
from typing import Final

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.modes.base import AnyGeneration
from app.modes.canvas import TYPICAL, Canvas
from app.modes.generation import GenerationRequest
from app.requests import measurements
from app.requests.estimate import (
    NOT_MEASURED,
    TINY_MEMORY,
    Fit,
    Memory,
    Price,
    Seconds,
    Tokens,
    devices,
    median_of,
    price_of,
    total_of,
)
from app.requests.measurements import MeasuredGeneration
from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS
from trainer.capacity import NUM_BLOCKS, TINY, model_id, num_audio_latents, num_video_tokens
from trainer.generation import num_passes
from trainer.plan import SAMPLING_BYTES, Plan, choose_for_sampling, weight_bytes

NO_MEASUREMENTS: Final = (
    "No generation of this kind with this model has finished here yet, so nothing was measured."
)


class VideoSize(BaseModel):
    """Of the video that is returned."""

    width: int
    height: int
    num_frames: int
    duration_seconds: float
    megapixels: float = Field(description="Width x height x frames / 1,000,000, not rounded.")


class GenerationTime(BaseModel):
    """Without waiting in the queue."""

    total_seconds: float | None
    device: str | None = Field(description="What the measurements were made on.")
    prepare: Seconds = Field(description="Fetching and fitting the source and the LoRAs.")
    steps: Seconds
    writing: Seconds = Field(description="Decoding and encoding the video; scaled by its pixels.")
    rest: Seconds = Field(description="Loading, the prompt, encoding the source, storing.")
    reason: str | None = None


class GenerationEstimate(BaseModel):
    endpoint: str
    model: str
    price: Price
    video: VideoSize
    tokens: Tokens
    time: GenerationTime
    memory: Memory


def estimate_generation(
    session: Session,
    mode: AnyGeneration,
    request: GenerationRequest,
    model: str,
    size: Canvas | None = None,
    frames: int | None = None,
) -> GenerationEstimate:
    """For ``request``; ``size`` is that of its canvas where only the source could tell, ``frames``
    those of the video where its source is known, which may end before."""
    assumes = []
    size = size or mode.canvas(request)
    if size is None:
        size = TYPICAL
        assumes.append(
            f"The source has the shape of {size.width}x{size.height}; others have about its area."
        )
    frames = frames or request.num_frames
    # The model works on whole latent cells and frames, and the result is cut back.
    num_frames = 1 + LATENT_STRIDE_FRAMES * -(-(frames - 1) // LATENT_STRIDE_FRAMES)
    width, height = (
        LATENT_STRIDE_PIXELS * -(-side // LATENT_STRIDE_PIXELS)
        for side in (size.width, size.height)
    )
    tokens = Tokens(
        video=num_video_tokens(num_frames, height, width),
        audio=num_audio_latents(num_frames, request.frame_rate) if request.generate_audio else 0,
        assumes=assumes,
    )
    model = model_id(model)
    measured = measurements.newest_generations(session, mode.path, model)
    return GenerationEstimate(
        endpoint=mode.id,
        model=model,
        price=price_of(mode, mode.billable_units(size, frames)),
        video=VideoSize(
            width=size.width,
            height=size.height,
            num_frames=frames,
            duration_seconds=round(float(frames / request.frame_rate), 3),
            megapixels=size.width * size.height * frames / 1_000_000,
        ),
        tokens=tokens,
        time=time_of(request, tokens, size.width * size.height * frames, measured),
        memory=memory_of(tokens, model, measured),
    )


def time_of(
    request: GenerationRequest,
    tokens: Tokens,
    num_pixels: int,
    measured: Sequence[MeasuredGeneration],
) -> GenerationTime:
    # A step with guidance is two passes, each as long as a step without.
    passes = request.num_inference_steps * num_passes(request.guidance_scale)
    parts = {
        "prepare": median_of(measured, lambda one: one.prepare_s, reason=NO_MEASUREMENTS),
        "steps": median_of(
            measured,
            lambda one: one.step_time_s / one.num_passes * passes,
            size=lambda one: one.video_tokens + one.audio_tokens,
            wanted=tokens.video + tokens.audio,
            reason=NO_MEASUREMENTS,
        ),
        "writing": median_of(
            measured,
            lambda one: one.writing_s,
            size=lambda one: one.num_pixels,
            wanted=num_pixels,
            reason=NO_MEASUREMENTS,
        ),
        "rest": median_of(measured, lambda one: one.rest_s, reason=NO_MEASUREMENTS),
    }
    total, reason = total_of(parts.values())
    device = measured[0].device if measured else None
    return GenerationTime(total_seconds=total, device=device, reason=reason, **parts)


def memory_of(tokens: Tokens, model: str, measured: Sequence[MeasuredGeneration]) -> Memory:
    """The base is loaded as fits beside `SAMPLING_BYTES`; what a long clip takes more than those is
    known once one was measured."""
    peaks = [
        one.peak_memory_bytes
        for one in measured
        if one.peak_memory_bytes is not None
        and (one.video_tokens, one.audio_tokens) == (tokens.video, tokens.audio)
    ]
    peak = max(peaks, default=None)
    if model == TINY:
        return Memory(
            least_bytes=None, full_speed_bytes=None, measured_peak_bytes=peak, reason=TINY_MEMORY
        )
    with_audio = tokens.audio > 0
    least = Plan("fp8", num_offloaded=NUM_BLOCKS)
    return Memory(
        least_bytes=weight_bytes(least, with_audio=with_audio) + SAMPLING_BYTES,
        full_speed_bytes=weight_bytes(Plan(), with_audio=with_audio) + SAMPLING_BYTES,
        measured_peak_bytes=peak,
        fits=[_fit(name, free, with_audio=with_audio) for name, free in devices(measured)],
        reason=None if peaks else NOT_MEASURED,
    )


def _fit(device: str, free: int, *, with_audio: bool) -> Fit:
    plan = choose_for_sampling(free, with_audio=with_audio, supports_float8=True)
    return Fit(device=device, free_bytes=free, plan=None if plan is None else plan.describe())
