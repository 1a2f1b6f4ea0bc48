"""How noisy a training sample gets, and where its randomness comes from (`ltx-training.md` 1.3).

Every random number of a training is a pure function of the seed and the step (`step_generator`),
and the order of the data of the seed and the epoch (`sample_index`). Nothing else draws: no
dropout, no sampled latents, and adapters start from a generator of their own. So there is no RNG
state to save, and a resumed training can't differ from an uninterrupted one.
"""

import hashlib

import torch
from torch import Tensor

# The shift grows linearly with the sequence length and is not clamped at either end.
_SHIFT_AT_1024, _SHIFT_AT_4096 = 0.95, 2.05
_Z_HALF_PERCENT, _Z_999_PERMILLE = -2.5758, 3.0902
"""Standard normal quantiles between which the logit-normal is stretched to [0, 1]."""
_MIN_SIGMA = 1e-3
"""Values below are reflected at it."""
_UNIFORM_SHARE = 0.1
"""Of all draws; without it, long sequences would hardly ever see little noise."""


def shift(num_tokens: int) -> float:
    """The logit-normal's mean for a sequence of ``num_tokens``.

    >>> shift(1024), round(shift(6912), 3)
    (0.95, 3.058)
    """
    return _SHIFT_AT_1024 + (_SHIFT_AT_4096 - _SHIFT_AT_1024) / 3072 * (num_tokens - 1024)


def sample_sigmas(batch_size: int, num_tokens: int, generator: torch.Generator) -> Tensor:
    """[B] sigmas in [0, 1] for one modality of ``num_tokens`` tokens.

    Draws randn(B), rand(B), rand(B) in this order from ``generator``, which is on the CPU.
    """
    mean = shift(num_tokens)
    z = torch.sigmoid(torch.randn(batch_size, generator=generator) + mean)
    low = torch.sigmoid(torch.tensor(mean + _Z_HALF_PERCENT))
    high = torch.sigmoid(torch.tensor(mean + _Z_999_PERMILLE))
    stretched = (z - low) / (high - low)
    stretched = torch.where(stretched < _MIN_SIGMA, 2 * _MIN_SIGMA - stretched, stretched)
    stretched = stretched.clamp(0, 1)
    uniform = _MIN_SIGMA + (1 - _MIN_SIGMA) * torch.rand(batch_size, generator=generator)
    coin = torch.rand(batch_size, generator=generator)
    return torch.where(coin > _UNIFORM_SHARE, stretched, uniform)


def step_generator(seed: int, step: int) -> torch.Generator:
    """A fresh CPU generator for one step: the same numbers whatever ran before, on any device."""
    return _generator(f"step {seed} {step}")


def sample_index(seed: int, step: int, num_samples: int) -> int:
    """Which sample ``step`` (from 0) trains on: every epoch sees each once, in its own order."""
    epoch, position = divmod(step, num_samples)
    order = torch.randperm(num_samples, generator=_generator(f"epoch {seed} {epoch}"))
    return int(order[position])


def _generator(purpose: str) -> torch.Generator:
    # Hashed, so that neighbouring seeds and steps share nothing.
    digest = hashlib.sha256(purpose.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
