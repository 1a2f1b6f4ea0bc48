"""Between pixels, latents and tokens: shapes, order, statistics, positions (`ltx-training.md` 1.1).

Video latents are [B, 128, f, h, w] and become tokens [B, f*h*w, 128], frame by frame, row by row.
Audio latents are [B, C, T, 16] and become tokens [B, T, C * 16] (C is 8; 2 in the tiny model).
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS
from trainer.capacity import num_audio_latents as num_audio_latents

AUDIO_LATENT_MEL_BINS = 16
"""64 mel bins, halved twice by the audio VAE."""

_MEL_FRAMES_PER_LATENT = 4
_MEL_FRAMES_PER_SECOND = 100


class _VideoVae(Protocol):
    latents_mean: Tensor
    latents_std: Tensor


@dataclass(frozen=True)
class VideoGeometry:
    """The size of one clip. Width and height are multiples of 32 px, frames are 8k + 1."""

    num_frames: int
    height: int
    width: int
    frame_rate: Fraction

    def __post_init__(self) -> None:
        if self.num_frames < 1 or (self.num_frames - 1) % LATENT_STRIDE_FRAMES:
            raise ValueError(f"num_frames must be 8k + 1, not {self.num_frames}")
        if self.height % LATENT_STRIDE_PIXELS or self.width % LATENT_STRIDE_PIXELS:
            raise ValueError(f"size must be multiples of 32, not {self.width}x{self.height}")

    @property
    def num_latent_frames(self) -> int:
        return (self.num_frames - 1) // LATENT_STRIDE_FRAMES + 1

    @property
    def latent_height(self) -> int:
        return self.height // LATENT_STRIDE_PIXELS

    @property
    def latent_width(self) -> int:
        return self.width // LATENT_STRIDE_PIXELS

    @property
    def num_tokens(self) -> int:
        return self.num_latent_frames * self.latent_height * self.latent_width


def pack_video(latents: Tensor) -> Tensor:
    """[B, C, f, h, w] -> [B, f*h*w, C], contiguous."""
    return latents.flatten(2).transpose(1, 2).contiguous()


def unpack_video(tokens: Tensor, geometry: VideoGeometry) -> Tensor:
    """[B, N, C] -> [B, C, f, h, w]."""
    grid = (geometry.num_latent_frames, geometry.latent_height, geometry.latent_width)
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous()


def pack_audio(latents: Tensor) -> Tensor:
    """[B, C, T, M] -> [B, T, C * M], contiguous."""
    return latents.transpose(1, 2).flatten(2).contiguous()


def unpack_audio(tokens: Tensor) -> Tensor:
    """[B, T, C * 16] -> [B, C, T, 16]."""
    return tokens.unflatten(2, (-1, AUDIO_LATENT_MEL_BINS)).transpose(1, 2).contiguous()


def normalise_video(latents: Tensor, vae: _VideoVae) -> Tensor:
    """[B, C, f, h, w] as encoded -> with the mean and deviation that the transformer expects."""
    mean, std = _statistics(vae, latents, (1, -1, 1, 1, 1))
    return (latents - mean) / std


def unnormalise_video(latents: Tensor, vae: _VideoVae) -> Tensor:
    """The inverse of `normalise_video`."""
    mean, std = _statistics(vae, latents, (1, -1, 1, 1, 1))
    return latents * std + mean


def normalise_audio(tokens: Tensor, audio_vae: _VideoVae) -> Tensor:
    """[B, T, C * 16] as encoded and packed -> normalised: the statistics are per packed channel."""
    mean, std = _statistics(audio_vae, tokens, (1, 1, -1))
    return (tokens - mean) / std


def unnormalise_audio(tokens: Tensor, audio_vae: _VideoVae) -> Tensor:
    """The inverse of `normalise_audio`; unpack afterwards."""
    mean, std = _statistics(audio_vae, tokens, (1, 1, -1))
    return tokens * std + mean


def video_coords(
    geometry: VideoGeometry, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """[B, 3, N, 2]: each token's start and end in seconds, pixel rows and pixel columns.

    Latent frame 0 is pixel frame 0, latent frame k is pixel frames 8k - 7 to 8k (1.7).
    """
    frame = torch.arange(geometry.num_latent_frames + 1, device=device, dtype=torch.float32)
    time = (frame * LATENT_STRIDE_FRAMES + 1 - LATENT_STRIDE_FRAMES).clamp(min=0)
    time = time / float(geometry.frame_rate)
    row = torch.arange(geometry.latent_height + 1, device=device, dtype=torch.float32)
    column = torch.arange(geometry.latent_width + 1, device=device, dtype=torch.float32)
    edges = (time, row * LATENT_STRIDE_PIXELS, column * LATENT_STRIDE_PIXELS)
    starts = torch.meshgrid(*(edge[:-1] for edge in edges), indexing="ij")
    ends = torch.meshgrid(*(edge[1:] for edge in edges), indexing="ij")
    bounds = torch.stack([torch.stack(starts), torch.stack(ends)], dim=-1)
    return bounds.flatten(1, 3).expand(batch_size, -1, -1, -1)


def audio_coords(
    num_latents: int, batch_size: int = 1, device: torch.device | str = "cpu"
) -> Tensor:
    """[B, 1, T, 2]: each token's start and end in seconds; the first covers one mel frame (1.7)."""
    edge = torch.arange(num_latents + 1, device=device, dtype=torch.float32)
    edge = (edge * _MEL_FRAMES_PER_LATENT + 1 - _MEL_FRAMES_PER_LATENT).clamp(min=0)
    edge = edge / _MEL_FRAMES_PER_SECOND
    return torch.stack([edge[:-1], edge[1:]], dim=-1).expand(batch_size, 1, -1, -1)


def _statistics(vae: _VideoVae, like: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return (
        vae.latents_mean.view(shape).to(like.device, like.dtype),
        vae.latents_std.view(shape).to(like.device, like.dtype),
    )
