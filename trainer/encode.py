"""Encode once: frames, sound and captions to latents and contexts, on disk, before any step.

What is found in the cache (`trainer/cache.py`) is not encoded again.
"""

import gc
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
from torch import Tensor

from preprocessing.events import EventLog
from trainer.audio import log_mel
from trainer.cache import EncodedCache, is_whole, save_whole
from trainer.footage import Footage
from trainer.latents import (
    normalise_audio,
    normalise_video,
    num_audio_latents,
    pack_audio,
    pack_video,
)
from trainer.model import BaseModel
from trainer.text import MAX_TOKENS, TextEncoder
from trainer.tiling import MAX_PIXELS, WARM_UP, Frames, encode_pieces

_SHOWN_CHARS: Final = 60
"""Of a prompt, in a line of log."""


def encode_all(
    clips: Iterable[Footage],
    prompts: Iterable[str],
    base: BaseModel,
    cache: EncodedCache,
    events: EventLog,
    *,
    between: Callable[[], None],
    text_encoder: Callable[[], TextEncoder] | None = None,
) -> None:
    """Fill ``cache`` with all ``clips`` and ``prompts``, those of the previews included.

    One encoder is loaded at a time, only where something is missing, and freed before the next.
    ``between`` runs between two items and may raise to stop. ``text_encoder`` gives one that is
    kept elsewhere.
    """
    _encode_prompts(prompts, text_encoder or base.text_encoder, cache, events, between)
    _free_memory(base.device)
    unique = {cache.latents_path(clip): clip for clip in clips}
    missing = {path: clip for path, clip in unique.items() if not is_whole(path)}
    if not missing:
        return
    # Both VAEs together are 1 GB of the real model; every clip is then read from disk once.
    video_vae = base.video_vae()
    audio_vae = base.audio_vae() if any(clip.audio for clip in missing.values()) else None
    with events.stage("encode_latents"):
        for done, (path, clip) in enumerate(missing.items(), start=1):
            between()
            tensors = {"video": encode_video(clip.pixels(), video_vae)}
            if audio_vae is not None and clip.audio is not None:
                tensors["audio"] = encode_audio(
                    clip.waveform(),
                    clip.audio.sample_rate,
                    audio_vae,
                    num_frames=clip.geometry.num_frames,
                    frame_rate=clip.geometry.frame_rate,
                )
            save_whole(path, tensors)
            events.emit("progress", name="encode_latents", done=done, total=len(missing))
    del video_vae, audio_vae
    _free_memory(base.device)


@torch.no_grad()
def encode_video(
    frames: Frames,
    vae: AutoencoderKLLTX2Video,
    *,
    max_pixels: int = MAX_PIXELS,
    warm_up: int = WARM_UP,
) -> Tensor:
    """uint8 [F, H, W, 3] -> normalised tokens [1, N, 128], fp32 on the CPU: the VAE's mean.

    More than ``max_pixels`` pass the VAE in pieces (`trainer/tiling.py`).
    """
    latents = []
    for part, num_dropped in encode_pieces(frames, max_pixels=max_pixels, warm_up=warm_up):
        pixels = scaled_pixels(torch.from_numpy(np.array(frames[part])).to(vae.device), vae.dtype)
        latents.append(vae.encode(pixels).latent_dist.mode()[:, :, num_dropped:].float())
    return pack_video(normalise_video(torch.cat(latents, dim=2), vae)).cpu()


def scaled_pixels(frames: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [F, H, W, 3] -> [1, 3, F, H, W] in [-1, 1], rounded to ``dtype`` once, at the end."""
    return (frames.permute(3, 0, 1, 2)[None].float() / 127.5 - 1).to(dtype)


@torch.no_grad()
def encode_audio(
    waveform: Tensor,
    sample_rate: int,
    audio_vae: AutoencoderKLLTX2Audio,
    *,
    num_frames: int,
    frame_rate: Fraction,
) -> Tensor:
    """[2, S] as long as ``num_frames`` -> normalised tokens [1, T, C], fp32 on the CPU.

    T = round(F / fps * 25): the encoder can give one latent more, mostly past the end of the clip,
    which would shift a suffix window (1.1, 1.10).
    """
    mel = log_mel(waveform[None].to(audio_vae.device), sample_rate)
    latents = audio_vae.encode(mel.to(audio_vae.dtype)).latent_dist.mode().float()
    num_latents = num_audio_latents(num_frames, frame_rate)
    if latents.shape[2] < num_latents:
        raise ValueError(f"{waveform.shape[-1]} samples are too short for {num_frames} frames")
    return normalise_audio(pack_audio(latents[:, :, :num_latents]), audio_vae).cpu()


def _encode_prompts(
    prompts: Iterable[str],
    text_encoder: Callable[[], TextEncoder],
    cache: EncodedCache,
    events: EventLog,
    between: Callable[[], None],
) -> None:
    unique = dict.fromkeys(prompts)
    missing = [prompt for prompt in unique if not is_whole(cache.context_path(prompt))]
    if not missing:
        return
    encoder = text_encoder()
    with events.stage("encode_text"):
        for done, prompt in enumerate(missing, start=1):
            between()
            if (num_tokens := encoder.num_tokens(prompt)) > MAX_TOKENS:
                events.log(
                    f"A caption or prompt of {num_tokens} tokens is cut to {MAX_TOKENS}; "
                    f"it begins with {prompt[:_SHOWN_CHARS]!r}",
                    level="WARN",
                )
            (context,) = encoder.encode([prompt])
            tensors = {"video": context.video, "audio": context.audio}
            save_whole(cache.context_path(prompt), tensors)
            events.emit("progress", name="encode_text", done=done, total=len(missing))


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
