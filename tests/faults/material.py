"""What generations start from: a clip and a LoRA of the tiny model, as their users host them."""

from typing import Final

import numpy as np
from safetensors.numpy import save

from tests.conftest import real_clip

SOURCE: Final = "source.mp4"
LORA: Final = "lora.safetensors"
WIDTH, RANK = 64, 4
"""Of the tiny model's video stream (`trainer.tiny`), and of the LoRA."""


def material() -> dict[str, bytes]:
    """The files by name."""
    return {SOURCE: real_clip("carphone_pristine.mp4").read_bytes(), LORA: _lora()}


def _lora() -> bytes:
    """One layer, so that a preparation of nothing else is quick; the same bytes every time."""
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    rng = np.random.default_rng(3)
    shapes = {"lora_A": (RANK, WIDTH), "lora_B": (WIDTH, RANK)}
    tensors = {
        f"{layer}.{name}.weight": rng.normal(0.0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    return save(tensors, metadata={"format": "pt"})
