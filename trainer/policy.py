"""How many blocks to run twice instead of keeping their activations (`ltx-training.md` 5.3).

Keeping everything is fastest (30 % fewer operations); what does not fit is recomputed. The estimate
is linear in tokens and blocks, measured on the real model; the loop corrects it when it was wrong.
"""

import torch
from diffusers import LTX2VideoTransformer3DModel

from trainer.flow import Example

# Bytes that one block keeps for one video token, per unit of width (4096 in the real model).
_BYTES_BASE = 62
"""83.9 GB / 48 blocks / 6912 tokens / 4096."""
_BYTES_PER_TOKEN_MODULATION = 24
"""More in a joint training where timesteps differ between tokens: 116.5 GB in place of 83.9.
Without audio they cost nothing (`transformer.py`)."""
_BYTES_WITH_AUDIO = 22
"""More in a joint training: 114 GB in place of 83.9."""

_RESERVED_BYTES = 12 * 10**9
"""For one block's recomputation, optimizer state, kernels' workspace and fragmentation."""


def num_blocks_to_checkpoint(
    transformer: LTX2VideoTransformer3DModel, example: Example, device: torch.device
) -> int:
    """Blocks to recompute so that one step on ``example`` fits. 0 on the CPU: its memory is large
    where models are small."""
    if device.type != "cuda":
        return 0
    free_bytes, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return blocks_over_budget(
        num_blocks=len(transformer.transformer_blocks),
        bytes_per_block=activation_bytes_per_block(transformer, example),
        budget_bytes=free_bytes + cached - _RESERVED_BYTES,
    )


def activation_bytes_per_block(transformer: LTX2VideoTransformer3DModel, example: Example) -> int:
    """What the backward pass needs of one block, for this batch."""
    batch, num_tokens, _ = example.video.tokens.shape
    width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    per_unit = _BYTES_BASE
    if example.audio is not None:
        per_unit += _BYTES_WITH_AUDIO
        if example.video.keep is not None:
            per_unit += _BYTES_PER_TOKEN_MODULATION
    return batch * num_tokens * width * per_unit


def blocks_over_budget(num_blocks: int, bytes_per_block: int, budget_bytes: int) -> int:
    """How many blocks do not fit.

    >>> [blocks_over_budget(48, 10, budget) for budget in (480, 425, -5)]
    [0, 6, 48]
    """
    kept = max(0, budget_bytes) // max(1, bytes_per_block)
    return max(0, num_blocks - kept)
