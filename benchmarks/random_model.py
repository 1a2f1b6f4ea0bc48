"""Transformers for benchmarks: the real architecture with random weights, made on the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import LTX2VideoTransformer3DModel

from trainer.flow import Clean, Example
from trainer.latents import VideoGeometry, audio_coords, num_audio_latents, video_coords
from trainer.model import BaseModel
from trainer.transformer import drop_audio_branch

TEXT_TOKENS: Final = 1024
LTX_2_3: Final[dict[str, Any]] = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "rope_type": "split",
    "use_prompt_embeddings": False,
    "perturbed_attn": True,
}
"""What LTX-2.3's config says beside diffusers' defaults (`ltx-training.md` 2.6)."""
NUM_LAYERS: Final = {"ltx-2.3-random": 48, "ltx-2.3-4-layers": 4}
MODELS: Final = ("tiny", *NUM_LAYERS)


CACHE: Final = Path("data/cache")


def build(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    with_audio: bool,
    seed: int = 0,
    cache: Path = CACHE,
) -> LTX2VideoTransformer3DModel:
    """``tiny`` as it is, or the architecture of LTX-2.3 with weights that keep activations sane."""
    if name == "tiny":
        base = BaseModel.open(name, cache, device)
        base.dtype = dtype
        return base.transformer(with_audio=with_audio)
    with torch.device("meta"), _default_dtype(dtype):
        transformer = LTX2VideoTransformer3DModel(**LTX_2_3, num_layers=NUM_LAYERS[name])
    if not with_audio:
        drop_audio_branch(transformer)
    transformer.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for parameter_name, parameter in transformer.named_parameters():
        if "norm" in parameter_name:
            torch.nn.init.ones_(parameter)
        elif parameter_name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=generator)
    return transformer.eval().requires_grad_(False)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_example(
    transformer: LTX2VideoTransformer3DModel,
    geometry: VideoGeometry,
    device: torch.device,
    *,
    with_audio: bool,
    num_kept: int = 0,
    seed: int = 0,
) -> Example:
    """A batch of one with random latents and texts; the last ``num_kept`` tokens are given."""
    generator = torch.Generator().manual_seed(seed)
    config = transformer.config
    dtype = transformer.proj_in.weight.dtype

    def clean(tokens: int, channels: int, width: int, coords: torch.Tensor, kept: int) -> Clean:
        keep = (torch.arange(tokens) >= tokens - kept)[None].to(device) if kept else None
        return Clean(
            tokens=torch.randn(1, tokens, channels, generator=generator).to(device),
            context=torch.randn(1, TEXT_TOKENS, width, generator=generator).to(device, dtype),
            coords=coords.to(device),
            keep=keep,
        )

    video = clean(
        geometry.num_tokens,
        config.in_channels,
        config.cross_attention_dim,
        video_coords(geometry),
        num_kept,
    )
    audio = None
    if with_audio:
        count = num_audio_latents(geometry.num_frames, geometry.frame_rate)
        audio = clean(
            count,
            config.audio_in_channels,
            config.audio_cross_attention_dim,
            audio_coords(count),
            min(num_kept, count // 4),
        )
    return Example(video, audio, num_conditions=1 if num_kept else 0)
