"""One call of the LTX-2.3 transformer, as the reference calls it.

diffusers' forward needs three things to give the reference's numbers (`ltx-training.md` 1.7, 5.4):

- The cross-modality scale and shift come from a token's own timestep, their gate from the other
  modality's sigma. diffusers takes both from the same one; a hook gives the two modules theirs.
- Text is given without a mask: after the connectors it is all ones, and an additive mask of zeros
  switches flash attention off.
- Timesteps are multiplied by 1000 here, once; everything else of the trainer has them in [0, 1].

Without audio the blocks run here, video branch only: equal to `isolate_modalities` with a dummy
audio token, and no audio weights need exist (`drop_audio_branch` saves 11.7 GB of the real model).
There, modulation is computed and kept for the two timesteps that a sample has, its sigma and the 0
of given tokens, not for every token: that is 33 GB less at 6912 tokens (5.3).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformerBlock
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

TIMESTEP_SCALE = 1000
"""The transformer's timesteps run from 0 to 1000; ours are sigmas in [0, 1]."""

_AUDIO_PREFIXES = ("audio_", "av_cross_attn_", "video_to_audio_", "video_a2v_", "cross_attn_audio_")
"""What only the audio branch and the attention between the branches use, in model and blocks."""


@dataclass(frozen=True)
class Modality:
    """What the transformer is given of one modality."""

    tokens: Tensor
    """[B, N, C]: noisy, kept tokens clean. C is 128, for audio channels * 16 mel bins."""
    sigma: Tensor
    """[B]: the sample's sigma in [0, 1], kept tokens or not."""
    context: Tensor
    """[B, S, D]: connector output."""
    coords: Tensor
    """[B, 3, N, 2] (video) or [B, 1, T, 2] (audio): RoPE bounds in seconds, pixels, pixels."""
    keep: Tensor | None = None
    """[B, N] bool: the given tokens, whose timestep is 0. None where none is given."""
    keep_noise: float = 0.0
    """Part of the sample's sigma that the given tokens have: 0 clean, 1 like all others."""

    @property
    def timesteps(self) -> Tensor:
        return token_timesteps(self.sigma, self.keep, self.keep_noise)


def token_timesteps(sigma: Tensor, keep: Tensor | None, keep_noise: float = 0.0) -> Tensor:
    """[B, N]: each token's sigma in [0, 1], ``keep_noise`` of it where it is kept; [B, 1] without
    ``keep``."""
    levels = sigma[:, None]
    return levels if keep is None else torch.where(keep, levels * keep_noise, levels)


def predict_velocity(
    transformer: LTX2VideoTransformer3DModel,
    video: Modality,
    audio: Modality | None,
    *,
    skip_self_attention_blocks: tuple[int, ...] = (),
    isolate_modalities: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The velocity (noise - clean) of the video [B, N, 128] and, where given, the audio [B, T, C].

    ``skip_self_attention_blocks`` are the blocks whose self-attention, in both branches, is
    replaced by the projected values (STG); ``isolate_modalities`` switches the attention between
    the branches off. Raises ValueError for a block the model does not have: diffusers would ignore
    it silently.
    """
    num_blocks = len(transformer.transformer_blocks)
    if any(not 0 <= index < num_blocks for index in skip_self_attention_blocks):
        raise ValueError(f"no such block among {num_blocks}: {skip_self_attention_blocks}")
    if audio is None:
        return _video_velocity(transformer, video, skip_self_attention_blocks), None
    with _cross_modality_scale_from_own_timesteps(transformer, video, audio):
        return transformer(
            hidden_states=video.tokens,
            audio_hidden_states=audio.tokens,
            encoder_hidden_states=video.context,
            audio_encoder_hidden_states=audio.context,
            timestep=video.timesteps * TIMESTEP_SCALE,
            audio_timestep=audio.timesteps * TIMESTEP_SCALE,
            sigma=video.sigma * TIMESTEP_SCALE,
            audio_sigma=audio.sigma * TIMESTEP_SCALE,
            video_coords=video.coords,
            audio_coords=audio.coords,
            isolate_modalities=isolate_modalities,
            spatio_temporal_guidance_blocks=list(skip_self_attention_blocks),
            use_cross_timestep=True,
            return_dict=False,
        )


def drop_audio_branch(transformer: LTX2VideoTransformer3DModel) -> None:
    """Remove what a video-only call never runs. The model then only serves such calls."""
    for module in (transformer, *transformer.transformer_blocks):
        for children in (module._modules, module._parameters):
            for name in [name for name in children if name.startswith(_AUDIO_PREFIXES)]:
                del children[name]


def checkpoint_blocks(transformer: LTX2VideoTransformer3DModel, num_blocks: int) -> None:
    """Keep no activations of the first ``num_blocks`` blocks; the backward pass runs them again."""
    transformer.num_checkpointed_blocks = num_blocks
    chosen = {id(block) for block in transformer.transformer_blocks[:num_blocks]}

    def run(block: nn.Module, *args: Any) -> Any:
        return _recomputed(block, *args) if id(block) in chosen else block(*args)

    if num_blocks:
        transformer.enable_gradient_checkpointing(run)
    else:
        transformer.disable_gradient_checkpointing()


# No block draws random numbers, so there is no RNG state to keep for the second run.
_recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def _cross_modality_scale_from_own_timesteps(
    transformer: LTX2VideoTransformer3DModel, video: Modality, audio: Modality
) -> Iterator[None]:
    def give(timesteps: Tensor) -> Any:
        flat = (timesteps * TIMESTEP_SCALE).flatten()
        return lambda module, args, kwargs: ((flat, *args[1:]), kwargs)

    handles = [
        module.register_forward_pre_hook(give(modality.timesteps), with_kwargs=True)
        for module, modality in (
            (transformer.av_cross_attn_video_scale_shift, video),
            (transformer.av_cross_attn_audio_scale_shift, audio),
        )
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _video_velocity(
    transformer: LTX2VideoTransformer3DModel, video: Modality, skipped: tuple[int, ...]
) -> Tensor:
    """The video half of diffusers' `LTX2VideoTransformer3DModel.forward`, nothing else."""
    batch = video.tokens.shape[0]
    rope = transformer.rope(video.coords, device=video.tokens.device)
    hidden = transformer.proj_in(video.tokens)
    levels = video.sigma[:, None] * TIMESTEP_SCALE
    if video.keep is not None:
        levels = torch.cat([levels, levels * video.keep_noise], dim=1)  # rows of `_by_token`
    modulation, embedded = transformer.time_embed(
        levels.flatten(), batch_size=batch, hidden_dtype=hidden.dtype
    )
    modulation = modulation.view(batch, -1, modulation.shape[-1])
    embedded = embedded.view(batch, -1, embedded.shape[-1])
    text_modulation, _ = transformer.prompt_adaln(
        video.sigma * TIMESTEP_SCALE, batch_size=batch, hidden_dtype=hidden.dtype
    )
    text_modulation = text_modulation.view(batch, 1, -1)

    num_checkpointed = getattr(transformer, "num_checkpointed_blocks", 0)
    for index, block in enumerate(transformer.transformer_blocks):
        recompute = torch.is_grad_enabled() and index < num_checkpointed
        run = partial(_recomputed, _video_block) if recompute else _video_block
        hidden = run(
            block,
            hidden,
            video.context,
            modulation,
            text_modulation,
            rope,
            video.keep,
            index in skipped,
        )

    shift, scale = (transformer.scale_shift_table[None, None] + embedded[:, :, None]).unbind(2)
    hidden = _scaled(transformer.norm_out(hidden), 1 + scale, video.keep)
    return transformer.proj_out(hidden + _by_token(shift, video.keep))


def _video_block(
    block: LTX2VideoTransformerBlock,
    hidden: Tensor,
    context: Tensor,
    modulation: Tensor,
    text_modulation: Tensor,
    rope: tuple[Tensor, Tensor],
    keep: Tensor | None,
    skip_self_attention: bool,
) -> Tensor:
    """The video half of diffusers' `LTX2VideoTransformerBlock.forward`: [B, N, D] -> [B, N, D]."""
    batch = hidden.shape[0]
    shift, scale, gate, shift_ff, scale_ff, gate_ff, shift_q, scale_q, gate_q = (
        block.get_mod_params(block.scale_shift_table, modulation, batch)
    )

    def modulated(tokens: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return _scaled(tokens, 1 + scale, keep) + _by_token(shift, keep)

    attended = block.attn1(
        modulated(block.norm1(hidden), scale, shift),
        query_rotary_emb=rope,
        all_perturbed=skip_self_attention,
    )
    hidden = hidden + _scaled(attended, gate, keep)

    shift_kv, scale_kv = block.get_mod_params(
        block.prompt_scale_shift_table, text_modulation, batch
    )
    attended = block.attn2(
        modulated(block.norm2(hidden), scale_q, shift_q),
        encoder_hidden_states=context * (1 + scale_kv) + shift_kv,
    )
    hidden = hidden + _scaled(attended, gate_q, keep)
    return hidden + _scaled(
        block.ff(modulated(block.norm3(hidden), scale_ff, shift_ff)), gate_ff, keep
    )


def _by_token(rows: Tensor, keep: Tensor | None) -> Tensor:
    """Rows [B, 2, D], for generated and for kept tokens, as [B, N, D]; [B, 1, D] fits as it is."""
    return rows if keep is None else torch.where(keep[..., None], rows[:, 1:], rows[:, :1])


def _scaled(tokens: Tensor, rows: Tensor, keep: Tensor | None) -> Tensor:
    """``tokens`` [B, N, D] times their row; keeps two rows for the backward pass, not N."""
    if keep is None:
        return tokens * rows
    scaled: Tensor = _ScaledByRow.apply(tokens, rows, keep)
    return scaled


class _ScaledByRow(torch.autograd.Function):
    """A product whose second factor is frozen and spread out again when it is needed."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(rows, keep)
        ctx.dtype = tokens.dtype
        return tokens * _by_token(rows, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, keep = ctx.saved_tensors
        return (gradient * _by_token(rows, keep)).to(ctx.dtype), None, None
