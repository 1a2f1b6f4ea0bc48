"""A short prompt made into a detailed one by the model's own text encoder.

LTX-2.3's text encoder is a whole Gemma 3 that also writes; diffusers has the instruction that its
makers use. Written greedily, so that a seed gives one video.
"""

from typing import Any, Final

import torch
from diffusers.pipelines.ltx2.prompt_enhancement import clean_response
from diffusers.pipelines.ltx2.utils import T2V_DEFAULT_SYSTEM_PROMPT

from trainer.text import MAX_TOKENS, TextEncoder

MAX_NEW_TOKENS: Final = 512
"""Of the prompt that is written; the transformer reads 1024."""

MIN_LETTERS: Final = 3
"""Fewer are no prompt."""


class CannotExpand(Exception):
    """The prompt stays as it is. The message says why, for the log."""


def expand_prompt(
    encoder: TextEncoder, prompt: str, *, max_new_tokens: int = MAX_NEW_TOKENS
) -> str:
    """``prompt`` in detail. Raises `CannotExpand` where this model can't write, or wrote nothing
    that is a prompt."""
    tokenizer, gemma = encoder.tokenizer, encoder.gemma
    if not getattr(tokenizer, "chat_template", None):
        raise CannotExpand("the loaded model's tokenizer has no chat template")
    tokens = _asked(tokenizer, prompt).to(gemma.device)
    length = tokens["input_ids"].shape[1]
    if length > 4 * MAX_TOKENS:
        raise CannotExpand("it is long already")
    with torch.inference_mode():
        written = gemma.generate(
            **tokens,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=tokenizer.pad_token_id,
        )
    text = tokenizer.decode(written[0, length:], skip_special_tokens=True)
    expanded = " ".join(clean_response(text).split())
    if sum(map(str.isalpha, expanded)) < MIN_LETTERS or not expanded.isprintable():
        raise CannotExpand("the loaded model wrote nothing that is a prompt")
    return expanded


def _asked(tokenizer: Any, prompt: str) -> Any:
    messages = [
        {"role": "system", "content": T2V_DEFAULT_SYSTEM_PROMPT.strip()},
        {"role": "user", "content": f"user prompt: {prompt}"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The template writes the token that begins a text.
    return tokenizer(text, return_tensors="pt", add_special_tokens=False)
