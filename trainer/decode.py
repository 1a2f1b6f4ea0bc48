"""From sampled tokens to pictures and sound."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE
from numpy.typing import NDArray
from torch import Tensor

from trainer.latents import (
    VideoGeometry,
    unnormalise_audio,
    unnormalise_video,
    unpack_audio,
    unpack_video,
)
from trainer.model import BaseModel
from trainer.mp4 import fit_audio, num_audio_samples
from trainer.sampler import SampledLatents
from trainer.tiling import MAX_PIXELS, decode_pieces


@dataclass(frozen=True)
class Clip:
    """What can be played: ``frames`` uint8 [F, H, W, 3]; ``audio`` float32 [2, S] at 48 kHz, just
    as long, or None."""

    frames: NDArray[np.uint8]
    frame_rate: Fraction
    audio: NDArray[np.float32] | None


class Decoder:
    """The decoders of one model; without audio, the video VAE only."""

    def __init__(
        self,
        video_vae: AutoencoderKLLTX2Video,
        audio_vae: AutoencoderKLLTX2Audio | None = None,
        vocoder: LTX2VocoderWithBWE | None = None,
    ) -> None:
        if (audio_vae is None) != (vocoder is None):
            raise ValueError("audio needs both its VAE and the vocoder")
        self.video_vae = video_vae
        self.audio_vae = audio_vae
        self.vocoder = vocoder

    @classmethod
    def open(cls, model: BaseModel, *, with_audio: bool) -> "Decoder":
        if not with_audio:
            return cls(model.video_vae())
        return cls(model.video_vae(), model.audio_vae(), model.vocoder())

    def decode(self, latents: SampledLatents, geometry: VideoGeometry) -> Clip:
        """One sample (B = 1) as it plays. Sound is decoded where it was sampled."""
        frames = np.concatenate(list(self.frames(latents.video, geometry)))
        return Clip(frames, geometry.frame_rate, self.sound(latents.audio, geometry))

    def frames(
        self, tokens: Tensor, geometry: VideoGeometry, *, max_pixels: int = MAX_PIXELS
    ) -> Iterator[NDArray[np.uint8]]:
        """Normalised tokens [1, N, 128] -> uint8 [n, H, W, 3], piece by piece in the order of time,
        rounded to the nearest level. A clip of at most ``max_pixels`` comes as one piece."""
        vae = self.video_vae
        with torch.inference_mode():  # on every `next`, not only on the first
            latents = unnormalise_video(unpack_video(tokens, geometry), vae).to(vae.dtype)
        pieces = decode_pieces(vae, latents, max_pixels=max_pixels)
        while True:
            with torch.inference_mode():
                pixels = next(pieces, None)
                if pixels is None:
                    return
                levels = ((pixels[0].float().clamp(-1.0, 1.0) + 1.0) * 127.5).round()
                frames = levels.to(torch.uint8).permute(1, 2, 3, 0).contiguous().cpu().numpy()
            yield frames

    @torch.inference_mode()
    def sound(self, tokens: Tensor | None, geometry: VideoGeometry) -> NDArray[np.float32] | None:
        """Normalised tokens [1, T, C] -> float32 [2, S] at 48 kHz, as long as the frames."""
        if tokens is None:
            return None
        if self.audio_vae is None or self.vocoder is None:
            raise ValueError("the sample has sound, but the decoder was opened without audio")
        sound = decode_audio(self.audio_vae, self.vocoder, tokens)
        # The last latent covers a few milliseconds less or more than the last frame.
        num_samples = num_audio_samples(geometry.num_frames, geometry.frame_rate)
        return fit_audio(sound[0].cpu().numpy(), num_samples)


def decode_audio(
    audio_vae: AutoencoderKLLTX2Audio, vocoder: LTX2VocoderWithBWE, tokens: Tensor
) -> Tensor:
    """Normalised tokens [B, T, C] -> float32 [B, 2, S] in [-1, 1] at 48 kHz, S about 1920 T."""
    latents = unpack_audio(unnormalise_audio(tokens, audio_vae))
    mel = audio_vae.decode(latents.to(audio_vae.dtype), return_dict=False)[0]
    return vocoder(mel.to(vocoder.dtype)).float()
