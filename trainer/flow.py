"""Flow matching on tokens: noise, target, masked loss (`ltx-training.md` 1.2, 1.4)."""

from dataclasses import dataclass

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from trainer.timesteps import sample_sigmas
from trainer.transfer import to_device
from trainer.transformer import Modality, predict_velocity

_MIN_SHARE = 1e-8
"""Least share of tokens in the loss, so that a wholly kept sample contributes exactly 0."""


@dataclass(frozen=True)
class Clean:
    """One modality of a training batch, before noise."""

    tokens: Tensor
    """[B, N, C], normalised."""
    context: Tensor
    """[B, S, D]"""
    coords: Tensor
    """As in `Modality`."""
    keep: Tensor | None = None
    """[B, N] bool: True on given tokens. None where there are no conditions."""


@dataclass(frozen=True)
class Example:
    """One training batch."""

    video: Clean
    audio: Clean | None = None
    num_conditions: int = 0


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step: sigma [B] and noise [B, N, C] of each modality."""

    video: tuple[Tensor, Tensor]
    audio: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class Losses:
    """``total`` [] is what is differentiated: video and audio 1:1, averaged over the batch."""

    total: Tensor
    video: Tensor
    audio: Tensor | None


@dataclass(frozen=True)
class Noised:
    """One modality at its sigma: what the model sees and what it should answer."""

    tokens: Tensor
    """[B, N, C]: (1 - sigma) * clean + sigma * noise; kept tokens clean."""
    target: Tensor
    """[B, N, C]: noise - clean, the velocity."""
    in_loss: Tensor | None
    """[B, N] bool: not kept. None = all."""


def draw_video(
    batch_size: int,
    num_tokens: int,
    num_channels: int,
    generator: torch.Generator,
    *,
    num_conditions: int = 0,
) -> tuple[Tensor, Tensor]:
    """The video's sigma [B] and noise [B, N, C], on the CPU; drawn before the audio's.

    The order and the memory layout are the reference's, for equal numbers from equal generators:
    its video tokens are a view of [B, C, f, h, w], so their noise is drawn channel by channel. It
    draws once more per condition, whether to apply it; ours always applies, the draw keeps step.
    """
    sigma = sample_sigmas(batch_size, num_tokens, generator)
    noise = torch.empty(batch_size, num_channels, num_tokens).transpose(1, 2)
    noise.normal_(generator=generator)
    for _ in range(num_conditions):
        torch.rand(batch_size, generator=generator)
    return sigma, noise


def draw_audio(
    batch_size: int, num_tokens: int, num_channels: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The audio's own sigma [B] and noise [B, T, C], on the CPU.

    Independent of the video's sigma: sharing it breaks voices (1.3).
    """
    sigma = sample_sigmas(batch_size, num_tokens, generator)
    return sigma, torch.randn(batch_size, num_tokens, num_channels, generator=generator)


def add_noise(clean: Tensor, sigma: Tensor, noise: Tensor, keep: Tensor | None) -> Noised:
    """Tokens [B, N, C] at sigma [B]; ``keep`` [B, N] bool marks the given ones."""
    level = sigma[:, None, None]
    tokens = (1 - level) * clean + level * noise
    if keep is not None:
        tokens = torch.where(keep[..., None], clean, tokens)
    return Noised(
        tokens=tokens,
        target=noise - clean,
        in_loss=None if keep is None else ~keep,
    )


def masked_loss(prediction: Tensor, target: Tensor, in_loss: Tensor | None) -> Tensor:
    """[B]: each sample's mean squared error over its generated tokens only, in fp32.

    So a small hole weighs as much as a whole frame. A sample that is all kept gives 0.
    """
    error = prediction.float() - target.float()
    if in_loss is None:
        return error.square().mean(dim=(1, 2))
    # A choice before the square, not a product: kept tokens reach neither loss nor gradient.
    error = torch.where(in_loss[..., None], error, 0.0)
    share = in_loss.float().mean(dim=1).clamp(min=_MIN_SHARE)
    return error.square().mean(dim=(1, 2)) / share


def draw(example: Example, generator: torch.Generator) -> Draws:
    """All random numbers of one step, in the reference's order, moved to the example's device."""
    tokens = example.video.tokens
    batch, num_tokens, channels = tokens.shape
    sigma, noise = draw_video(
        batch, num_tokens, channels, generator, num_conditions=example.num_conditions
    )
    video = (to_device(sigma, tokens.device), to_device(noise, tokens.device))
    if example.audio is None:
        return Draws(video)
    batch, num_tokens, channels = example.audio.tokens.shape
    sigma, noise = draw_audio(batch, num_tokens, channels, generator)
    return Draws(video, (to_device(sigma, tokens.device), to_device(noise, tokens.device)))


def velocity_loss(
    transformer: LTX2VideoTransformer3DModel, example: Example, draws: Draws
) -> Losses:
    """The loss of one step: noise in, velocity out, error on the generated tokens."""
    video_noised, video_input = _noised(example.video, draws.video)
    audio_noised = audio_input = None
    if example.audio is not None and draws.audio is not None:
        audio_noised, audio_input = _noised(example.audio, draws.audio)
    video, audio = predict_velocity(transformer, video_input, audio_input)
    video_loss = masked_loss(video, video_noised.target, video_noised.in_loss).mean()
    if audio is None or audio_noised is None:
        return Losses(video_loss, video_loss, None)
    audio_loss = masked_loss(audio, audio_noised.target, audio_noised.in_loss).mean()
    return Losses(video_loss + audio_loss, video_loss, audio_loss)


def _noised(clean: Clean, drawn: tuple[Tensor, Tensor]) -> tuple[Noised, Modality]:
    sigma, noise = drawn
    noised = add_noise(clean.tokens, sigma, noise, clean.keep)
    return noised, Modality(noised.tokens, sigma, clean.context, clean.coords, clean.keep)
