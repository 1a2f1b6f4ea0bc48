"""From a prompt to what the transformer attends to (`ltx-training.md` 1.6, 2.3).

Gemma's hidden states of all layers go through the connectors once per prompt; their output is what
is cached and trained with. The reference runs the connectors, 2 B parameters, at every step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from torch import Tensor

MAX_TOKENS = 1024
"""Prompts are padded on the left to this many tokens; longer ones are cut."""


@dataclass(frozen=True)
class PromptContext:
    """One prompt, as the transformer gets it. No mask: registers fill the padding."""

    video: Tensor
    """[1024, Dv]"""
    audio: Tensor
    """[1024, Da]"""


class TextEncoder:
    """Gemma and the connectors on one device. Free it by dropping every reference."""

    def __init__(self, tokenizer: Any, gemma: Any, connectors: LTX2TextConnectors) -> None:
        self.tokenizer = tokenizer
        self.gemma = gemma
        self.connectors = connectors

    def encode(self, prompts: Sequence[str]) -> list[PromptContext]:
        """One context per prompt, on the CPU. One prompt at a time: its context then does not
        depend on the others (a batched matrix product rounds differently)."""
        return [self._encode_one(prompt) for prompt in prompts]

    def num_tokens(self, prompt: str) -> int:
        """Of the whole of it; what comes after the first `MAX_TOKENS` has no effect."""
        return len(self.tokenizer(prompt.strip()).input_ids)

    @torch.no_grad()
    def _encode_one(self, prompt: str) -> PromptContext:
        tokens = self.tokenizer(
            [prompt.strip()],
            padding="max_length",
            padding_side="left",
            max_length=MAX_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self.gemma.device)
        # One row of logits: the vocabulary times 1024 tokens would be half a gigabyte for nothing.
        states = self.gemma(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=True,
            logits_to_keep=1,
        ).hidden_states
        hidden = torch.stack(states, dim=-1).to(self.connectors.dtype)
        video, audio = connect(self.connectors, hidden, tokens.attention_mask)
        return PromptContext(video[0].cpu(), audio[0].cpu())


def connect(
    connectors: LTX2TextConnectors, hidden: Tensor, attention_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states [B, S, D, layers + 1], left padded, and their mask [B, S] -> the contexts
    [B, S, Dv] and [B, S, Da]: normalised per token and layer, projected, connected."""
    video, audio, _ = connectors(hidden, attention_mask, padding_side="left")
    return video, audio
