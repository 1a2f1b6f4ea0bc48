"""What a generation would cost and how large it is, before it is submitted."""

from pydantic import BaseModel, Field

from app.modes.base import AnyGeneration
from app.modes.canvas import TYPICAL, Canvas
from app.modes.generation import GenerationRequest
from app.requests.estimate import Price, Tokens, price_of
from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS
from trainer.capacity import model_id, num_audio_latents, num_video_tokens


class VideoSize(BaseModel):
    """Of the video that is returned."""

    width: int
    height: int
    num_frames: int
    duration_seconds: float
    megapixels: float = Field(description="Width x height x frames / 1,000,000, not rounded.")


class GenerationEstimate(BaseModel):
    endpoint: str
    model: str
    price: Price
    video: VideoSize
    tokens: Tokens


def estimate_generation(
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
    audio = num_audio_latents(num_frames, request.frame_rate) if request.generate_audio else 0
    return GenerationEstimate(
        endpoint=mode.id,
        model=model_id(model),
        price=price_of(mode, mode.billable_units(size, frames)),
        video=VideoSize(
            width=size.width,
            height=size.height,
            num_frames=frames,
            duration_seconds=round(float(frames / request.frame_rate), 3),
            megapixels=size.width * size.height * frames / 1_000_000,
        ),
        tokens=Tokens(
            video=num_video_tokens(num_frames, height, width), audio=audio, assumes=assumes
        ),
    )
