"""LoRAs of the tiny model, and what a transformer says with and without them."""

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from trainer.adapter import adapter_state, add_adapter, load_adapter_state
from trainer.lora_file import LoraMetadata
from trainer.model import BaseModel
from trainer.transformer import Modality, predict_velocity

RANK = 4


def trained(tiny: BaseModel, *, with_audio: bool) -> LTX2VideoTransformer3DModel:
    """The tiny transformer with an adapter whose every tensor says something."""
    transformer = tiny.transformer(with_audio=with_audio)
    add_adapter(transformer, RANK, with_audio)
    generator = torch.Generator().manual_seed(3)
    state = adapter_state(transformer)
    noise = {k: torch.randn(t.shape, generator=generator) * 0.1 for k, t in state.items()}
    load_adapter_state(transformer, noise)
    return transformer


def metadata(*, with_audio: bool, rank: int = RANK) -> LoraMetadata:
    return LoraMetadata(
        training_type="t2v",
        rank=rank,
        steps=250,
        width=768,
        height=448,
        num_frames=89,
        frame_rate="24",
        with_audio=with_audio,
        trigger_phrase="tronlög0 «ß»",
        dataset_hash="ab12",
    )


def velocities(transformer: LTX2VideoTransformer3DModel, *, with_audio: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    config = transformer.config

    def modality(shape: tuple[int, int], text_width: int, axes: int) -> Modality:
        num_tokens, channels = shape
        starts = torch.rand(1, axes, num_tokens, 1, generator=generator)
        return Modality(
            tokens=torch.randn(1, num_tokens, channels, generator=generator),
            sigma=torch.full((1,), 0.4),
            context=torch.randn(1, 6, text_width, generator=generator),
            coords=torch.cat([starts, starts + 0.1], dim=-1),
        )

    video = modality((12, config.in_channels), config.cross_attention_dim, 3)
    audio = None
    if with_audio:
        audio = modality((9, config.audio_in_channels), config.audio_cross_attention_dim, 1)
    with torch.no_grad():
        found = predict_velocity(transformer, video, audio)
    return [velocity for velocity in found if velocity is not None]
