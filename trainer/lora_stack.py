"""Several LoRAs at once on a frozen transformer, added for one sample and taken out after it.

A sum of low-rank updates is one low-rank update: the A matrices below each other, the B matrices
beside each other. So however many files there are, PEFT holds one adapter, a layer has two small
products, and `trainer.adapter.remove_adapter` takes all of them away.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors import safe_open
from torch import Tensor

from trainer.adapter import add_frozen_adapter
from trainer.lora_check import AdaptedLayer, CheckedLora


@dataclass(frozen=True)
class ScaledLora:
    """A checked file, and how strongly it acts: 1 as it was trained, 0 not at all."""

    lora: CheckedLora
    scale: float


def add_loras(
    transformer: LTX2VideoTransformer3DModel, loras: Sequence[ScaledLora], *, with_audio: bool
) -> None:
    """Add the sum of ``loras``, unmerged; without audio, their layers for sound are left out.

    The weights take the base's dtype: a bf16 file at scale 1 stays as it is, bit by bit, and other
    scales are multiplied into B in fp32 first.
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for scaled in loras:
        layers = [one for one in scaled.lora.layers if with_audio or not one.is_audio]
        with safe_open(scaled.lora.path, framework="pt", device="cpu") as file:
            for layer in layers:
                parts[layer.module].append(_pair(file, layer, scaled.scale))
    dtype = transformer.proj_in.weight.dtype
    add_frozen_adapter(
        transformer,
        {
            module: (
                torch.cat([a for a, _ in pairs]).to(dtype),
                torch.cat([b for _, b in pairs], dim=1).to(dtype),
            )
            for module, pairs in parts.items()
        },
    )


def _pair(file: safe_open, layer: AdaptedLayer, scale: float) -> tuple[Tensor, Tensor]:
    """A [r, in] and B [out, r] with all scales in it, in fp32."""
    a, b = (file.get_tensor(entry.name).float() for entry in (layer.a, layer.b))
    return a, b * (scale * layer.scaling)
