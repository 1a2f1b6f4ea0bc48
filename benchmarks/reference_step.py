"""A training step as it is written without care for the machine, to compare with.

diffusers' forward and blocks as they are: a dummy audio token where there is no sound, a timestep
and its modulation for every token, the text's mask as additive zeros, every block recomputed,
nothing compiled, and the loss read at every step. On video alone the numbers are the same; with
sound diffusers takes one scale and shift between the branches from the other sigma
(`ltx-training.md` 1.7), which costs as much.
"""

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

from trainer.adapter import add_adapter
from trainer.flow import Draws, Example, add_noise, masked_loss
from trainer.latents import audio_coords
from trainer.transformer import TIMESTEP_SCALE, token_timesteps


class ReferenceTrainer:
    """`update` like `trainer.loop.Trainer`'s; ``transformer`` needs its audio branch."""

    def __init__(
        self, transformer: LTX2VideoTransformer3DModel, rank: int, *, with_audio: bool
    ) -> None:
        self.transformer = transformer
        self.device = transformer.proj_in.weight.device
        self.parameters = add_adapter(transformer, rank, with_audio)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=2e-4)
        transformer.enable_gradient_checkpointing()

    def update(self, example: Example, draws: Draws) -> float:
        cuda = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=cuda):
            loss = self._loss(example, draws)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()

    def close(self) -> None:
        self.transformer.disable_gradient_checkpointing()

    def _loss(self, example: Example, draws: Draws) -> Tensor:
        video, (sigma, noise) = example.video, draws.video
        noised = add_noise(video.tokens, sigma, noise, video.keep)
        inputs = {
            "hidden_states": noised.tokens,
            "encoder_hidden_states": video.context,
            "timestep": _each(sigma, noised.tokens, video.keep),
            "sigma": sigma * TIMESTEP_SCALE,
            "video_coords": video.coords,
            "encoder_attention_mask": torch.ones_like(video.context[..., 0]),
        }
        config = self.transformer.config
        if example.audio is None or draws.audio is None:
            empty = noise.new_zeros(1, 1, config.audio_in_channels)
            inputs |= {
                "audio_hidden_states": empty,
                "audio_encoder_hidden_states": video.context.new_zeros(
                    1, 1, config.audio_cross_attention_dim
                ),
                "audio_timestep": torch.zeros_like(empty[..., 0]),
                "audio_sigma": torch.zeros_like(sigma),
                "audio_coords": audio_coords(1, device=self.device),
                "isolate_modalities": True,
            }
            velocity, _ = self._call(inputs)
            return masked_loss(velocity, noised.target, noised.in_loss).mean()
        audio, (audio_sigma, audio_noise) = example.audio, draws.audio
        audio_noised = add_noise(audio.tokens, audio_sigma, audio_noise, audio.keep)
        inputs |= {
            "audio_hidden_states": audio_noised.tokens,
            "audio_encoder_hidden_states": audio.context,
            "audio_timestep": _each(audio_sigma, audio_noised.tokens, audio.keep),
            "audio_sigma": audio_sigma * TIMESTEP_SCALE,
            "audio_coords": audio.coords,
            "audio_encoder_attention_mask": torch.ones_like(audio.context[..., 0]),
        }
        velocity, audio_velocity = self._call(inputs)
        return (
            masked_loss(velocity, noised.target, noised.in_loss)
            + masked_loss(audio_velocity, audio_noised.target, audio_noised.in_loss)
        ).mean()

    def _call(self, inputs: dict[str, object]) -> tuple[Tensor, Tensor]:
        video, audio = self.transformer(**inputs, use_cross_timestep=True, return_dict=False)
        return video, audio


def _each(sigma: Tensor, tokens: Tensor, keep: Tensor | None) -> Tensor:
    """[B, N]: every token's own timestep."""
    return token_timesteps(sigma, keep).expand(tokens.shape[:2]) * TIMESTEP_SCALE
