"""How many blocks to run twice instead of keeping their activations (`ltx-training.md` 5.3).

Keeping everything is fastest (30 % fewer operations); what does not fit is recomputed. The estimate
is linear in tokens and blocks, measured on the real model; the loop corrects it when it was wrong.
Its numbers are in `capacity.py`.
"""

import torch
from diffusers import LTX2VideoTransformer3DModel

from trainer import capacity
from trainer.flow import Example


def num_blocks_to_checkpoint(
    transformer: LTX2VideoTransformer3DModel, example: Example, device: torch.device
) -> int:
    """Blocks to recompute so that one step on ``example`` fits. 0 on the CPU: its memory is large
    where models are small."""
    if device.type != "cuda":
        return 0
    free_bytes, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return capacity.blocks_over_budget(
        num_blocks=len(transformer.transformer_blocks),
        bytes_per_block=activation_bytes_per_block(transformer, example),
        budget_bytes=free_bytes + cached - capacity.RESERVED_BYTES,
    )


def activation_bytes_per_block(transformer: LTX2VideoTransformer3DModel, example: Example) -> int:
    """What the backward pass needs of one block, for this batch."""
    batch, num_tokens, _ = example.video.tokens.shape
    return batch * capacity.activation_bytes_per_block(
        num_tokens,
        with_audio=example.audio is not None,
        with_conditions=example.video.keep is not None,
        width=transformer.config.num_attention_heads * transformer.config.attention_head_dim,
    )
