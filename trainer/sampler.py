"""Euler sampling over packed tokens, with tokens that stay as given (`ltx-training.md` 2.4).

One sampler for previews and inference. diffusers' pipelines can't serve here: they take their
schedule from the token count, append conditions as extra tokens instead of keeping them in place,
and turn velocity into x0 with one sigma for all tokens.

Shapes: B samples, N tokens of C channels (128; 32 for the tiny model's audio), S text tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from trainer.guidance import NO_GUIDANCE, Guidance, Passes, stg_block
from trainer.latents import VideoGeometry, audio_coords, num_audio_latents, video_coords
from trainer.text import PromptContext
from trainer.transformer import Modality, predict_velocity, token_timesteps

SCHEDULE_TOKENS = 4096
"""Sampling shifts its sigmas as for so many tokens, whatever the size; training does not (1.3)."""
SHIFT_TOKENS = (1024, 4096)
SHIFT_MU = (0.95, 2.05)
"""The shift's exponent mu is linear in the tokens through these two points."""
TERMINAL_SIGMA = 0.1
"""The last sigma before 0."""


@dataclass(frozen=True)
class Given:
    """Tokens the model is shown instead of making them: ``clean`` [B, N, 128] where ``keep`` [N]
    (bool) is true.

    At strength 1 they leave the sampler as they came, to the last bit. Below, they begin with 1 -
    strength of noise, are that much less noisy than the rest at every step, and are drawn towards
    ``clean`` by strength: the conditioning mask of diffusers' `LTX2ConditionPipeline`, with a
    token's x0 by its own timestep (2.4 b).
    """

    keep: Tensor
    clean: Tensor
    strength: float = 1.0


@dataclass(frozen=True)
class Stream:
    """One modality of a sample: what to start from, what to follow, what is given.

    ``noise`` [B, N, C] float32 is x at sigma 1; ``coords`` are as in `Modality`; ``positive`` and
    ``negative`` [B, S, D] are connector outputs. The negative one is needed as soon as one
    modality's guidance has CFG: the modalities see each other.
    """

    noise: Tensor
    coords: Tensor
    positive: Tensor
    negative: Tensor | None = None
    guidance: Guidance = NO_GUIDANCE
    given: Given | None = None


@dataclass(frozen=True)
class SampleRequest:
    """Everything `sample` needs to know. ``stg_blocks`` matter only where STG is on."""

    video: Stream
    audio: Stream | None = None
    num_steps: int = 30
    stg_blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class SampledLatents:
    """Normalised tokens in float32: ``video`` [B, N, 128], ``audio`` [B, T, 128] or None."""

    video: Tensor
    audio: Tensor | None


def is_finite(latents: SampledLatents) -> bool:
    """Whether a sample came to numbers."""
    streams = (latents.video, latents.audio)
    return all(bool(torch.isfinite(tokens).all()) for tokens in streams if tokens is not None)


def sigma_schedule(num_steps: int, num_tokens: int = SCHEDULE_TOKENS) -> Tensor:
    """Sigmas [num_steps + 1] in float32, falling from 1 to 0; the last but one is 0.1.

    In float32 throughout, for the reference's sigmas bit by bit (golden 07): times 1000 and into
    sines, a difference of 3e-7 is one of 5e-4 in the sample. A single step goes from 1 to 0.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, not {num_steps}")
    (low, high), (mu_low, mu_high) = SHIFT_TOKENS, SHIFT_MU
    shift = math.exp(mu_low + (mu_high - mu_low) / (high - low) * (num_tokens - low))
    time = torch.linspace(1.0, 0.0, num_steps + 1)[:-1]
    sigmas = shift / (shift + (1.0 / time - 1.0))
    if num_steps > 1:
        distance = 1.0 - sigmas
        sigmas = 1.0 - distance / (distance[-1] / (1.0 - TERMINAL_SIGMA))
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def build_request(
    transformer: LTX2VideoTransformer3DModel,
    geometry: VideoGeometry,
    positive: PromptContext,
    negative: PromptContext | None,
    guidance: tuple[Guidance, Guidance | None],
    *,
    num_steps: int,
    seed: int,
    given_video: Given | None = None,
    given_audio: Given | None = None,
) -> SampleRequest:
    """One sample of ``geometry`` for a prompt; with sound where ``guidance`` has a second part.

    The noise comes from a generator of its own, on the CPU, video first: a seed means the same on
    every device.
    """
    device = transformer.proj_in.weight.device
    generator = torch.Generator().manual_seed(seed)
    video_guidance, audio_guidance = guidance

    def noise(num_tokens: int, channels: int) -> Tensor:
        return torch.randn(1, num_tokens, channels, generator=generator).to(device)

    video = Stream(
        noise=noise(geometry.num_tokens, transformer.config.in_channels),
        coords=video_coords(geometry, device=device),
        positive=positive.video[None].to(device),
        negative=None if negative is None else negative.video[None].to(device),
        guidance=video_guidance,
        given=given_video,
    )
    audio = None
    if audio_guidance is not None:
        num_latents = num_audio_latents(geometry.num_frames, geometry.frame_rate)
        audio = Stream(
            noise=noise(num_latents, transformer.config.audio_in_channels),
            coords=audio_coords(num_latents, device=device),
            positive=positive.audio[None].to(device),
            negative=None if negative is None else negative.audio[None].to(device),
            guidance=audio_guidance,
            given=given_audio,
        )
    blocks = (stg_block(len(transformer.transformer_blocks)),)
    return SampleRequest(video=video, audio=audio, num_steps=num_steps, stg_blocks=blocks)


@torch.inference_mode()
def sample(
    transformer: LTX2VideoTransformer3DModel,
    request: SampleRequest,
    *,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> SampledLatents | None:
    """Denoise ``request`` with the transformer as it stands, adapters and mode included.

    ``on_step(done, total)`` is called after every step, ``should_stop()`` before every one; None is
    returned when it says so. Touches no global random state.
    """
    streams = [request.video] if request.audio is None else [request.video, request.audio]
    passes = Passes.of(*(stream.guidance for stream in streams))
    _check(request, passes)

    states = [_State(stream) for stream in streams]
    schedule = sigma_schedule(request.num_steps).tolist()
    for step, (sigma, next_sigma) in enumerate(pairwise(schedule)):
        if should_stop is not None and should_stop():
            return None
        predict = partial(_predict, transformer, states, sigma)
        nothing = [None] * len(states)
        cond = predict()
        uncond = predict(negative=True) if passes.uncond else nothing
        perturbed = predict(skip=request.stg_blocks) if passes.perturbed else nothing
        isolated = predict(isolate=True) if passes.isolated else nothing
        for index, state in enumerate(states):
            guided = state.stream.guidance.combine(
                cond[index],
                uncond=uncond[index],
                perturbed=perturbed[index],
                isolated=isolated[index],
            )
            state.step(guided, sigma, next_sigma)
        if on_step is not None:
            on_step(step + 1, request.num_steps)
    return SampledLatents(states[0].tokens, states[1].tokens if len(states) == 2 else None)


class _State:
    """One modality while it is sampled: ``tokens`` [B, N, C] in float32."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.given: Given | None = None
        self._keep: Tensor | None = None
        noise = stream.noise.float()
        if stream.given is not None:
            given = stream.given
            self.given = replace(
                given, keep=given.keep.to(noise.device), clean=given.clean.to(noise)
            )
            self._keep = self.given.keep.expand(noise.shape[0], -1)
        self.tokens = self._drawn_to_given(noise)

    def model_input(self, sigma: float, *, negative: bool) -> Modality:
        context = self.stream.negative if negative else self.stream.positive
        assert context is not None  # _check saw to it
        return Modality(
            tokens=self.tokens,
            sigma=self._levels(sigma),
            context=context,
            coords=self.stream.coords,
            keep=self._keep,
            keep_noise=self._keep_noise,
        )

    @property
    def _keep_noise(self) -> float:
        return 0.0 if self.given is None else 1.0 - self.given.strength

    def x0(self, velocity: Tensor | None, sigma: float) -> Tensor:
        """x - v t with each token's own t, so a given token's x0 is itself."""
        assert velocity is not None
        timesteps = token_timesteps(self._levels(sigma), self._keep, self._keep_noise)
        return self.tokens - velocity.float() * timesteps.unsqueeze(-1)

    def step(self, x0: Tensor, sigma: float, next_sigma: float) -> None:
        """One Euler step towards ``x0``."""
        x0 = self._drawn_to_given(x0)
        moved = self.tokens + (next_sigma - sigma) * (self.tokens - x0) / sigma
        self.tokens = self._restore_given(moved)

    def _levels(self, sigma: float) -> Tensor:
        return self.tokens.new_full(self.tokens.shape[:1], sigma)

    def _drawn_to_given(self, tokens: Tensor) -> Tensor:
        """The given tokens mixed in by their strength."""
        if self.given is None or self.given.strength == 1.0:
            return self._restore_given(tokens)
        mixed = torch.lerp(tokens, self.given.clean, self.given.strength)
        return torch.where(self.given.keep[:, None], mixed, tokens)

    def _restore_given(self, tokens: Tensor) -> Tensor:
        """A choice, not arithmetic: what is given stays exact whatever the model said there."""
        if self.given is None or self.given.strength != 1.0:
            return tokens
        return torch.where(self.given.keep[:, None], self.given.clean, tokens)


def _predict(
    transformer: LTX2VideoTransformer3DModel,
    states: list[_State],
    sigma: float,
    *,
    negative: bool = False,
    skip: tuple[int, ...] = (),
    isolate: bool = False,
) -> list[Tensor]:
    """One forward pass: x0 of every modality there is."""
    inputs = [state.model_input(sigma, negative=negative) for state in states]
    with precision_of(transformer):
        velocities = predict_velocity(
            transformer,
            inputs[0],
            inputs[1] if len(inputs) == 2 else None,
            skip_self_attention_blocks=skip,
            isolate_modalities=isolate,
        )
    # strict=False: the second velocity is None where there is no audio.
    return [state.x0(v, sigma) for state, v in zip(states, velocities, strict=False)]


def precision_of(transformer: LTX2VideoTransformer3DModel) -> torch.autocast:
    """Autocast to the base weights' dtype, as in training; off for a float32 model.

    No cache: its casts would be inference tensors, and a training's autocast around us would take
    them up and lose its gradients.
    """
    weight = transformer.proj_in.weight
    reduced = weight.dtype in (torch.bfloat16, torch.float16)
    return torch.autocast(
        weight.device.type,
        dtype=weight.dtype if reduced else torch.bfloat16,
        enabled=reduced,
        cache_enabled=False,
    )


def _check(request: SampleRequest, passes: Passes) -> None:
    """Mistakes of the caller that would pass in silence."""
    if passes.perturbed and not request.stg_blocks:
        raise ValueError("STG is on, but stg_blocks is empty")
    for name, stream in (("video", request.video), ("audio", request.audio)):
        if passes.uncond and stream is not None and stream.negative is None:
            raise ValueError(f"CFG is on, but {name} has no negative context")
