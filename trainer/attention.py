"""Which attention kernel a training runs on: the fastest one this device has, by measurement.

Text and audio are attended to without masks, so every kernel is in question (`ltx-training.md`
5.4). Self-attention over the video's tokens is 8 to 35 % of a step's operations.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

_BACKENDS: Final = {
    "fa3": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_ON_CUDA: Final = ("fa3", "cudnn", "flash", "efficient")
_RUNS: Final = 3
"""Measured, after one to warm up."""


@contextmanager
def attention_kernel(name: str | None) -> Iterator[None]:
    """Inside, forward and backward, attention runs on ``name``, and on another where that can't.

    None: as PyTorch chooses. ``fa3`` needs the package flash_attn_3.
    """
    if name is None:
        yield
        return
    rest = [backend for backend in dict.fromkeys(_BACKENDS.values()) if backend != _BACKENDS[name]]
    with (
        _flash_attention_3(name == "fa3"),
        sdpa_kernel([_BACKENDS[name], *rest], set_priority=True),
    ):
        yield


def fastest_kernel(
    device: torch.device, num_tokens: int, num_heads: int, head_width: int
) -> tuple[str | None, dict[str, float]]:
    """The quickest at self-attention [1, heads, N, width] in bf16, forward and backward, and the
    seconds of each that works here. None off CUDA, where there is nothing to choose."""
    if device.type != "cuda":
        return None, {}
    seconds: dict[str, float] = {}
    for name in _ON_CUDA:
        try:
            seconds[name] = _seconds(name, device, num_tokens, num_heads, head_width)
        except (RuntimeError, ImportError, ValueError):
            continue  # not built, not for this device, or no memory
    if not seconds:
        return None, {}
    return min(seconds, key=lambda name: seconds[name]), seconds


def _seconds(
    name: str, device: torch.device, num_tokens: int, num_heads: int, head_width: int
) -> float:
    shape = (1, num_heads, num_tokens, head_width)
    query, key, value = (
        torch.zeros(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    started = 0.0
    with _flash_attention_3(name == "fa3"), sdpa_kernel([_BACKENDS[name]]):
        for run in range(_RUNS + 1):
            if run == 1:
                torch.cuda.synchronize(device)
                started = time.perf_counter()
            attended = scaled_dot_product_attention(query, key, value)
            torch.autograd.grad(attended, (query, key, value), attended)
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / _RUNS


@contextmanager
def _flash_attention_3(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    torch_attention.activate_flash_attention_impl("FA3")
    try:
        yield
    finally:
        torch_attention.restore_flash_attention_impl()
