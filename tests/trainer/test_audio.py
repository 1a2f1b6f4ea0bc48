"""Sound to mel: golden 08, and rates and silence without an oracle."""

import math
import re
from fractions import Fraction

import pytest
import torch

from tests.trainer.jobs import golden
from trainer.audio import log_mel, resample
from trainer.latents import num_audio_latents

FILE = golden("08_audio")
RATES = sorted(int(name.removeprefix("wave_")) for name in FILE if name.startswith("wave_"))
RESAMPLED = [name for name in FILE if name.startswith("resampled")]

FFT_NOISE = 2e-6
"""In magnitude. A float32 FFT of a loud tone has rounding of this size in every bin, different on
every machine; near silence (1e-5) it is more than the 1e-3 of the logarithm."""


@pytest.mark.golden
@pytest.mark.parametrize("rate", RATES)
def test_the_mel_is_the_reference_mel(rate: int) -> None:
    expected = FILE[f"mel_{rate}"]
    mel = log_mel(FILE[f"wave_{rate}"], rate)
    torch.testing.assert_close(mel.exp(), expected.exp(), atol=FFT_NOISE, rtol=1e-3)
    audible = expected > math.log(1e-2)
    assert audible.any()
    torch.testing.assert_close(mel[audible], expected[audible], atol=1e-3, rtol=0)


@pytest.mark.golden
@pytest.mark.parametrize("name", RESAMPLED)
def test_resampling_is_the_reference_resampling(name: str) -> None:
    target, source = re.fullmatch(r"resampled(\d+)k_from_(\d+)", name).groups()
    result = resample(FILE[f"wave_{source}"], int(source), int(target) * 1000)
    torch.testing.assert_close(result, FILE[name], atol=1e-5, rtol=0)


@pytest.mark.golden
def test_the_latents_of_a_clip_are_the_reference_latents() -> None:
    (name,) = [name for name in FILE if name.startswith("audio_latent_len_")]
    frames, rate = re.fullmatch(r"audio_latent_len_px([\d_]+)_fps(\d+)", name).groups()
    ours = [num_audio_latents(int(count), Fraction(rate)) for count in frames.split("_")]
    assert ours == FILE[name].tolist()


def tone(rate: int, hz: float = 440.0, seconds: float = 0.5) -> torch.Tensor:
    time = torch.arange(round(rate * seconds), dtype=torch.float64) / rate
    return torch.sin(2 * math.pi * hz * time).float().expand(1, 2, -1)


@pytest.mark.parametrize("rate", [22050, 44100, 48000])
def test_a_tone_has_the_same_mel_at_every_rate(rate: int) -> None:
    expected, mel = log_mel(tone(16000), 16000), log_mel(tone(rate), rate)
    assert mel.shape == expected.shape == (1, 2, 51, 64)
    # Away from the ends, where the filter meets the edge, and where there is something to hear.
    inner = slice(8, -8)
    loud = expected[:, :, inner] > expected.max() - 6
    difference = (mel - expected)[:, :, inner][loud].abs().max()
    assert loud.any()
    assert difference < 1e-2


def test_a_tone_is_loudest_at_its_pitch() -> None:
    peaks = [log_mel(tone(16000, hz), 16000)[0, 0, 25].argmax().item() for hz in (220, 880, 3520)]
    assert peaks == sorted(set(peaks))


@pytest.mark.parametrize("rate", [16000, 44100])
def test_silence_is_the_floor(rate: int) -> None:
    mel = log_mel(torch.zeros(1, 2, rate), rate)
    torch.testing.assert_close(mel, torch.full_like(mel, math.log(1e-5)))
