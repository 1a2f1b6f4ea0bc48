"""Long clips through the video VAE in pieces of time, so that memory does not grow with length.

Both directions cut along time only: at 1080p a piece is still dozens of frames. diffusers' tiling
is not used: its encoder asks the decoder's switch, and its decoder holds all frames in floats
(`ltx-training.md` 2.2).

A piece that begins at latent frame s > 0 begins like a clip does, with one pixel frame: 8 s. So its
pixel frame j is frame 8 s + j of the whole, and its latent frame k is latent frame s + k.
"""

from collections.abc import Iterator
from typing import Final, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Video
from numpy.typing import NDArray
from torch import Tensor

from preprocessing.rules import LATENT_STRIDE_FRAMES, LATENT_STRIDE_PIXELS

MAX_PIXELS: Final = 2**28
"""Pixels of all frames that go through the VAE at once: 291 frames of 1280x720, 129 of 1080p. A
layer of the decoder then holds about 4 GB, in bf16 and with 128 channels."""

OVERLAP: Final = 6
"""Latent frames that two pieces share. The decoder sees both ways, so the ends of a piece are not
what the whole would give: the outer pixel frames are dropped, the middle ones blended."""

MARGIN: Final = 12
"""Of the shared pixel frames, those dropped at either end."""

WARM_UP: Final = 8
"""Latent frames that are encoded before a piece and thrown away. The encoder only looks back."""


class Frames(Protocol):
    """Pictures that are made or read when they are asked for: uint8 [F, H, W, 3]."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.uint8]: ...


def encode_pieces(
    frames: Frames, *, max_pixels: int = MAX_PIXELS, warm_up: int = WARM_UP
) -> Iterator[tuple[slice, int]]:
    """How to encode ``frames`` (8k + 1): for each piece its frames, and how many of its first
    latent frames to drop. One piece where all of them are few enough."""
    num_latents = latents_of(frames.shape[0])
    length = _piece_length(frames.shape[1], frames.shape[2], max_pixels, warm_up + 1)
    done = 0
    while done < num_latents:
        start = max(0, done - warm_up)
        end = min(start + length, num_latents)
        yield (
            slice(start * LATENT_STRIDE_FRAMES, (end - 1) * LATENT_STRIDE_FRAMES + 1),
            done - start,
        )
        done = end


def decode_pieces(
    vae: AutoencoderKLLTX2Video,
    latents: Tensor,
    *,
    max_pixels: int = MAX_PIXELS,
    overlap: int = OVERLAP,
) -> Iterator[Tensor]:
    """Decode unnormalised latents [1, C, f, h, w]: pixels [1, 3, n, H, W] in [-1, 1], piece by
    piece in the order of time, together 8 (f - 1) + 1 frames. All at once where they are few."""
    num_latents, rows, columns = latents.shape[2:]
    size = rows * LATENT_STRIDE_PIXELS, columns * LATENT_STRIDE_PIXELS
    length = _piece_length(*size, max_pixels, overlap + 1)
    start, tail = 0, None
    while True:
        end = min(start + length, num_latents)
        pixels = vae.decode(latents[:, :, start:end], None, return_dict=False)[0]
        if tail is not None:
            pixels = torch.cat([_blended(tail, pixels), pixels[:, :, tail.shape[2] :]], dim=2)
        if end == num_latents:
            yield pixels
            return
        finished = (end - overlap - start) * LATENT_STRIDE_FRAMES
        # A copy: a view would hold the whole piece.
        yield pixels[:, :, :finished]
        tail, start = pixels[:, :, finished:].clone(), end - overlap


def latents_of(num_frames: int) -> int:
    """Latent frames of 8k + 1 pixel frames."""
    return (num_frames - 1) // LATENT_STRIDE_FRAMES + 1


def _piece_length(height: int, width: int, max_pixels: int, at_least: int) -> int:
    """Latent frames whose pictures have at most ``max_pixels``; what is shared and one more must
    fit, however large the pictures."""
    num_frames = max(1, max_pixels // (height * width))
    return max(latents_of(num_frames), at_least)


def _blended(before: Tensor, after: Tensor) -> Tensor:
    """[1, 3, n, H, W] of the piece before, turning into the first n frames of the piece after."""
    count = before.shape[2]
    blended = count - 2 * MARGIN
    at = torch.arange(count, device=before.device, dtype=torch.float32)
    ramp = ((at - MARGIN + 1) / (blended + 1)).clamp(0, 1).to(before.dtype)
    return torch.lerp(before, after[:, :, :count], ramp[:, None, None])
