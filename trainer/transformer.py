"""One call of the LTX-2.3 transformer, as the reference calls it.

It is written out here, on diffusers' modules, because diffusers' own forward can't give the
reference's numbers at a sensible price (`ltx-training.md` 1.7, 2.1, 5.4):

- The cross-modality scale and shift come from a token's own timestep, their gate from the other
  modality's sigma. diffusers takes both from the same one.
- Text is given without a mask: after the connectors it is all ones, and an additive mask of zeros
  switches flash attention off.
- Without audio no audio weight need exist (`drop_audio_branch` saves 11.7 GB of the real model).
- A sample has two timesteps, its sigma and that of given tokens; modulation is computed and kept
  for these two, not for every token (`blocks.py`).
- How a block is run (compiled, recomputed, with its weights on the host) is for the machine to
  decide, block by block (`execution.py`).

Timesteps are multiplied by 1000 here, once; everything else of the trainer has them in [0, 1].
"""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from trainer.blocks import Branch, Crossing, Rope, modulated
from trainer.execution import execution_of

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
    crossing = audio is not None and not isolate_modalities
    inputs = [_enter(transformer, _VIDEO, video, audio if crossing else None)]
    if audio is not None:
        inputs.append(_enter(transformer, _AUDIO, audio, video if crossing else None))
    hidden: Any = [entered.hidden for entered in inputs]
    branches = [entered.branch for entered in inputs]
    if audio is None:
        hidden.append(None)
        branches.append(None)
    execution = execution_of(transformer)
    for index, block in enumerate(transformer.transformer_blocks):
        hidden = execution.run(
            index, block, *hidden, *branches, index in skip_self_attention_blocks
        )
    velocities = [
        _leave(transformer, entered, tokens)
        for entered, tokens in zip(inputs, hidden, strict=False)
        if tokens is not None
    ]
    return velocities[0], velocities[1] if audio is not None else None


def drop_audio_branch(transformer: LTX2VideoTransformer3DModel) -> None:
    """Remove what a video-only call never runs. The model then only serves such calls."""
    for module in (transformer, *transformer.transformer_blocks):
        for children in (module._modules, module._parameters):
            for name in [name for name in children if name.startswith(_AUDIO_PREFIXES)]:
                del children[name]


@dataclass(frozen=True)
class _Names:
    """What a branch's modules are called in the model."""

    prefix: str
    cross_scale_shift: str
    cross_gate: str
    cross_rope: str


_VIDEO = _Names(
    prefix="",
    cross_scale_shift="av_cross_attn_video_scale_shift",
    cross_gate="av_cross_attn_video_a2v_gate",
    cross_rope="cross_attn_rope",
)
_AUDIO = _Names(
    prefix="audio_",
    cross_scale_shift="av_cross_attn_audio_scale_shift",
    cross_gate="av_cross_attn_audio_v2a_gate",
    cross_rope="cross_attn_audio_rope",
)


@dataclass(frozen=True)
class _Entered:
    """One modality on its way through the blocks."""

    names: _Names
    hidden: Any
    """[B, N, D]"""
    branch: Any
    embedded: Tensor
    """[B, R, D]: the timesteps, for the modulation of the output."""


def _enter(
    transformer: LTX2VideoTransformer3DModel,
    names: _Names,
    modality: Modality,
    other: Modality | None,
) -> _Entered:
    """``other`` is the modality that this one exchanges attention with, if any."""

    def part(name: str) -> Any:
        return getattr(transformer, names.prefix + name)

    hidden = part("proj_in")(modality.tokens)

    def embed(module: Any, sigmas: Tensor) -> tuple[Tensor, Tensor]:
        """[B, R] -> [B, R, K D] and [B, R, D]"""
        both = module(
            (sigmas * TIMESTEP_SCALE).flatten(),
            batch_size=sigmas.shape[0],
            hidden_dtype=hidden.dtype,
        )
        modulation, embedded = (rows.view(*sigmas.shape, -1) for rows in both)
        return modulation, embedded

    sigma = modality.sigma[:, None]
    levels = sigma
    if modality.keep is not None:
        # The two rows of `blocks.by_token`.
        levels = torch.cat([sigma, sigma * modality.keep_noise], dim=1)
    modulation, embedded = embed(part("time_embed"), levels)
    crossing = None
    if other is not None:
        crossing = Crossing(
            scale_shift=embed(getattr(transformer, names.cross_scale_shift), levels)[0],
            gate=embed(getattr(transformer, names.cross_gate), other.sigma[:, None])[0],
            rope=_rope(transformer, names.cross_rope, modality.coords, num_axes=1),
        )
    branch = Branch(
        context=modality.context,
        modulation=modulation,
        text_modulation=embed(part("prompt_adaln"), sigma)[0],
        rope=_rope(transformer, names.prefix + "rope", modality.coords),
        keep=modality.keep,
        crossing=crossing,
    )
    return _Entered(names, hidden, branch, embedded)


def _leave(transformer: LTX2VideoTransformer3DModel, entered: _Entered, hidden: Tensor) -> Tensor:
    prefix, keep = entered.names.prefix, entered.branch.keep
    table = getattr(transformer, f"{prefix}scale_shift_table")
    shift, scale = (table + entered.embedded[:, :, None]).unbind(2)
    normed = getattr(transformer, f"{prefix}norm_out")(hidden)
    return getattr(transformer, f"{prefix}proj_out")(modulated(normed, scale, shift, keep))


def _rope(
    transformer: LTX2VideoTransformer3DModel, name: str, coords: Tensor, num_axes: int | None = None
) -> Rope:
    """Of ``coords``; kept for the next call with the same tensor: a training has few."""
    kept: dict[str, tuple[Tensor, Rope]] = transformer.__dict__.setdefault("_kept_ropes", {})
    if name in kept and kept[name][0] is coords:
        return kept[name][1]
    module = getattr(transformer, name)
    rope: Rope = module(coords[:, :num_axes], device=coords.device)
    if not torch.is_inference_mode_enabled():  # what is made there can't be trained with
        kept[name] = (coords, rope)
    return rope
