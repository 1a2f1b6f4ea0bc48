"""The numbers that the gateway computes with are those of the model and of the trainer."""

from fractions import Fraction

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import nn

from app.modes.common import FRAME_SIZES
from trainer import capacity
from trainer.adapter import target_modules
from trainer.latents import VideoGeometry
from trainer.transformer import drop_audio_branch

LTX_2_3 = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "rope_type": "split",
    "use_prompt_embeddings": False,
}


@pytest.mark.parametrize("with_audio", [False, True])
def test_the_sizes_are_those_of_the_real_model(with_audio: bool) -> None:
    with torch.device("meta"):
        transformer = LTX2VideoTransformer3DModel(**LTX_2_3)
    if not with_audio:
        drop_audio_branch(transformer)
    parameters = sum(parameter.numel() for parameter in transformer.parameters())
    assert parameters * 2 == capacity.WEIGHT_BYTES[with_audio]
    config = transformer.config
    assert config.num_attention_heads * config.attention_head_dim == capacity.WIDTH
    assert len(transformer.transformer_blocks) == capacity.NUM_BLOCKS
    targets = tuple(f".{name}" for name in target_modules(with_audio))
    per_rank = sum(
        module.in_features + module.out_features
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(targets)
    )
    assert per_rank == capacity.ADAPTER_PARAMETERS_PER_RANK[with_audio]


@pytest.mark.parametrize("size", sorted(set(FRAME_SIZES.values())))
@pytest.mark.parametrize("num_frames", [1, 9, 89, 121])
def test_tokens_are_the_trainers(size: tuple[int, int], num_frames: int) -> None:
    width, height = size
    geometry = VideoGeometry(num_frames, height, width, Fraction(24))
    assert capacity.num_video_tokens(num_frames, height, width) == geometry.num_tokens
