"""Noise levels and where randomness comes from: golden 01, statistics, purity."""

import json
import re
from collections import Counter

import pytest
import torch

from tests.conftest import GOLDEN
from tests.trainer.jobs import golden
from trainer.flow import draw_audio, draw_video
from trainer.timesteps import sample_index, sample_sigmas, step_generator

NUM_DRAWS = 200_000
QUANTILE_TOLERANCE = 0.005
"""Kolmogorov-Smirnov distance of 200k draws at the 0.1 % level is 0.0044."""

DRAWS = {
    name: (int(match[1]), int(match[2]))
    for name in golden("01_timestep_sampler")
    if (match := re.fullmatch(r"draws_seed(\d+)_seq(\d+)", name))
}
STATISTICS = json.loads((GOLDEN / "01_timestep_sampler.json").read_text())["per_seq_len"]


@pytest.mark.golden
@pytest.mark.parametrize("name", DRAWS)
def test_the_draws_are_the_reference_draws(name: str) -> None:
    seed, num_tokens = DRAWS[name]
    expected = golden("01_timestep_sampler")[name]
    generator = torch.Generator().manual_seed(seed)
    sigmas = sample_sigmas(len(expected), num_tokens, generator)
    torch.testing.assert_close(sigmas, expected, atol=1e-6, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("num_tokens", STATISTICS)
def test_the_distribution_is_the_reference_distribution(num_tokens: str) -> None:
    expected = STATISTICS[num_tokens]
    sigmas = sample_sigmas(NUM_DRAWS, int(num_tokens), torch.Generator().manual_seed(1))
    for part, quantile in expected["quantiles"].items():
        share_below = (sigmas <= quantile).double().mean().item()
        assert share_below == pytest.approx(float(part), abs=QUANTILE_TOLERANCE), part
    assert (sigmas == 1).double().mean().item() == pytest.approx(expected["frac_eq_1"], abs=5e-4)
    assert sigmas.min() >= 1e-3
    assert sigmas.max() <= 1


def test_audio_and_video_sigmas_are_independent() -> None:
    generator = torch.Generator().manual_seed(2)
    video, _ = draw_video(NUM_DRAWS, 3, 1, generator)
    audio, _ = draw_audio(NUM_DRAWS, 3, 1, generator)
    correlation = torch.corrcoef(torch.stack([video, audio]))[0, 1].item()
    assert abs(correlation) < 0.01


def test_a_step_draws_the_same_whatever_ran_before() -> None:
    first = torch.randn(4, generator=step_generator(42, 7))
    torch.randn(100)
    torch.randn(100, generator=step_generator(42, 6))
    assert torch.equal(torch.randn(4, generator=step_generator(42, 7)), first)
    others = [torch.randn(4, generator=step_generator(*key)) for key in ((42, 8), (43, 7))]
    assert not any(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("num_samples", [1, 2, 7])
def test_every_epoch_sees_every_sample_once(num_samples: int) -> None:
    num_epochs = 40
    order = [sample_index(5, step, num_samples) for step in range(num_epochs * num_samples)]
    epochs = [tuple(order[i : i + num_samples]) for i in range(0, len(order), num_samples)]
    assert all(Counter(epoch) == Counter(range(num_samples)) for epoch in epochs)
    if num_samples == 7:
        assert len(set(epochs)) > num_epochs // 2
