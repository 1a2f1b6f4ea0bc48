"""Operations of a training step, counted from the modules (`ltx-training.md` 5.2).

Only what a step cannot do without: a forward pass, the gradients of the inputs, no recomputation.
The base's weights are frozen, so they get no gradients; adapters are below one percent.
"""

from dataclasses import dataclass

from diffusers import LTX2VideoTransformer3DModel
from torch import nn

from benchmarks.random_model import TEXT_TOKENS

ATTENTION_BACKWARD = 2.5
"""Of the forward, in a flash kernel: five products in place of two."""


@dataclass(frozen=True)
class Flops:
    """Of one sample; ``step`` is forward and backward."""

    forward: float
    step: float


def count_flops(
    transformer: LTX2VideoTransformer3DModel, num_tokens: int, num_audio_tokens: int
) -> Flops:
    """Without audio tokens, only the video branch counts."""
    forward = backward = 0.0
    for block in transformer.transformer_blocks:
        for name, module in block.named_children():
            if not _runs(name, num_audio_tokens):
                continue
            queries, keys = _lengths(name, num_tokens, num_audio_tokens)
            linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
            for part, linear in linears.items():
                if "lora_" in part:
                    continue
                ends = part.removesuffix(".base_layer")
                of_keys = ends in ("to_k", "to_v")
                count = keys if of_keys else queries
                operations = 2.0 * linear.in_features * linear.out_features * count
                forward += operations
                if not (of_keys and "attn2" in name):  # nobody needs the text's gradient
                    backward += operations
            if hasattr(module, "heads"):
                attention = 4.0 * queries * keys * module.inner_dim
                forward += attention
                backward += ATTENTION_BACKWARD * attention
    return Flops(forward, forward + backward)


def _runs(name: str, num_audio_tokens: int) -> bool:
    return num_audio_tokens > 0 or not name.startswith(("audio_", "video_to_audio"))


def _lengths(name: str, num_tokens: int, num_audio_tokens: int) -> tuple[int, int]:
    """Tokens that a module's queries (or inputs) and keys have."""
    if name == "audio_to_video_attn":
        return num_tokens, num_audio_tokens
    if name == "video_to_audio_attn":
        return num_audio_tokens, num_tokens
    own = num_audio_tokens if name.startswith("audio_") else num_tokens
    return own, TEXT_TOKENS if name.endswith("attn2") else own
