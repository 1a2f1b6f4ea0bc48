"""One block of the LTX-2.3 transformer, for a video alone or a video with its sound.

The same sums as diffusers' `LTX2VideoTransformerBlock.forward` (`ltx-training.md` 2.1), on the same
modules, with three differences: there may be no audio at all, text is attended to without a mask,
and modulation comes as rows, one per distinct timestep of a sample (`Branch.modulation`), not one
per token: 33 GB less at 6912 tokens (5.3).

B samples, N tokens, D the branch's width, R rows: 1, or 2 where tokens are given.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformerBlock
from torch import Tensor
from torch.autograd.function import once_differentiable

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, each [B, heads, N, width of a head / 2], float32."""


class Crossing(NamedTuple):
    """What one branch needs for the attention between the branches."""

    scale_shift: Tensor
    """[B, R, 4 D]: scale and shift towards the video, then towards the audio."""
    gate: Tensor
    """[B, 1, D]"""
    rope: Rope


class Branch(NamedTuple):
    """What every block is given of one modality; the same for all blocks."""

    context: Tensor
    """[B, S, D]: the text."""
    modulation: Tensor
    """[B, R, 9 D]: row 0 for generated tokens, row 1 for given ones, whose timestep is 0."""
    text_modulation: Tensor
    """[B, 1, 2 D]"""
    rope: Rope
    keep: Tensor | None
    """[B, N] bool: given tokens; None where none is."""
    crossing: Crossing | None = None
    """None: this branch sees no other."""


def run_block(
    block: LTX2VideoTransformerBlock,
    hidden: Tensor,
    audio_hidden: Tensor | None,
    video: Branch,
    audio: Branch | None,
    skip_self_attention: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """[B, N, D] (and [B, T, D']) -> the same. ``skip_self_attention``: values instead (STG)."""
    rows = _rows(block.scale_shift_table, video.modulation)
    hidden = _self_and_text(block, "", hidden, video, rows, skip_self_attention)
    if audio is None or audio_hidden is None:
        return _feed_forward(block, "", hidden, video, rows), None
    audio_rows = _rows(block.audio_scale_shift_table, audio.modulation)
    audio_hidden = _self_and_text(
        block, "audio_", audio_hidden, audio, audio_rows, skip_self_attention
    )
    if video.crossing is not None and audio.crossing is not None:
        hidden, audio_hidden = _cross(block, hidden, audio_hidden, video, audio)
    return (
        _feed_forward(block, "", hidden, video, rows),
        _feed_forward(block, "audio_", audio_hidden, audio, audio_rows),
    )


def _rows(table: Tensor, modulation: Tensor) -> Sequence[Tensor]:
    """A block's own table [K, D] plus what all blocks share [B, R, K D]: K times [B, R, D]."""
    return (table + modulation.unflatten(2, table.shape)).unbind(2)


def _self_and_text(
    block: LTX2VideoTransformerBlock,
    prefix: str,
    hidden: Tensor,
    branch: Branch,
    rows: Sequence[Tensor],
    skip: bool,
) -> Tensor:
    part = _Part(block, prefix)
    keep = branch.keep
    attended = part("attn1")(
        modulated(part("norm1")(hidden), rows[1], rows[0], keep),
        query_rotary_emb=branch.rope,
        all_perturbed=skip,
    )
    hidden = hidden + scaled(attended, rows[2], keep)
    shift, scale = _rows(part("prompt_scale_shift_table"), branch.text_modulation)
    attended = part("attn2")(
        modulated(part("norm2")(hidden), rows[7], rows[6], keep),
        encoder_hidden_states=branch.context * (1 + scale) + shift,
    )
    return hidden + scaled(attended, rows[8], keep)


def _feed_forward(
    block: LTX2VideoTransformerBlock,
    prefix: str,
    hidden: Tensor,
    branch: Branch,
    rows: Sequence[Tensor],
) -> Tensor:
    part = _Part(block, prefix)
    inner = part("ff")(modulated(part("norm3")(hidden), rows[4], rows[3], branch.keep))
    return hidden + scaled(inner, rows[5], branch.keep)


def _cross(
    block: LTX2VideoTransformerBlock,
    hidden: Tensor,
    audio_hidden: Tensor,
    video: Branch,
    audio: Branch,
) -> tuple[Tensor, Tensor]:
    """Video attends to audio and audio to video, both to the other as it was before."""
    assert video.crossing is not None  # run_block saw to it
    assert audio.crossing is not None
    table, audio_table = (
        block.video_a2v_cross_attn_scale_shift_table,
        block.audio_a2v_cross_attn_scale_shift_table,
    )
    rows = _rows(table[:4], video.crossing.scale_shift)
    audio_rows = _rows(audio_table[:4], audio.crossing.scale_shift)
    (gate,) = _rows(table[4:], video.crossing.gate)
    (audio_gate,) = _rows(audio_table[4:], audio.crossing.gate)
    normed = block.audio_to_video_norm(hidden)
    audio_normed = block.video_to_audio_norm(audio_hidden)

    to_video = block.audio_to_video_attn(
        modulated(normed, rows[0], rows[1], video.keep),
        encoder_hidden_states=modulated(audio_normed, audio_rows[0], audio_rows[1], audio.keep),
        query_rotary_emb=video.crossing.rope,
        key_rotary_emb=audio.crossing.rope,
    )
    to_audio = block.video_to_audio_attn(
        modulated(audio_normed, audio_rows[2], audio_rows[3], audio.keep),
        encoder_hidden_states=modulated(normed, rows[2], rows[3], video.keep),
        query_rotary_emb=audio.crossing.rope,
        key_rotary_emb=video.crossing.rope,
    )
    return hidden + gate * to_video, audio_hidden + audio_gate * to_audio


class _Part:
    """The modules of one branch of a block, by the names of the video's."""

    def __init__(self, block: LTX2VideoTransformerBlock, prefix: str) -> None:
        self._block = block
        self._prefix = prefix

    def __call__(self, name: str) -> Any:
        return getattr(self._block, self._prefix + name)


def modulated(tokens: Tensor, scale: Tensor, shift: Tensor, keep: Tensor | None) -> Tensor:
    """``tokens`` [B, N, D] * (1 + scale) + shift, each token with its row of both."""
    return scaled(tokens, 1 + scale, keep) + by_token(shift, keep)


def by_token(rows: Tensor, keep: Tensor | None) -> Tensor:
    """Rows [B, 2, D], for generated and for kept tokens, as [B, N, D]; [B, 1, D] fits as it is."""
    return rows if keep is None else torch.where(keep[..., None], rows[:, 1:], rows[:, :1])


def scaled(tokens: Tensor, rows: Tensor, keep: Tensor | None) -> Tensor:
    """``tokens`` [B, N, D] times their row; keeps two rows for the backward pass, not N.

    A compiler sees by itself that the rows are cheaper spread again than kept.
    """
    if keep is None or torch.compiler.is_compiling():
        return tokens * by_token(rows, keep)
    product: Tensor = _ScaledByRow.apply(tokens, rows, keep)
    return product


class _ScaledByRow(torch.autograd.Function):
    """A product whose second factor is frozen and spread out again when it is needed."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, rows: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(rows, keep)
        ctx.dtype = tokens.dtype
        return tokens * by_token(rows, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, keep = ctx.saved_tensors
        return (gradient * by_token(rows, keep)).to(ctx.dtype), None, None
