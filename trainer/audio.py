"""From a waveform to the log-mel picture that the audio VAE encodes (`ltx-training.md` 4).

torchaudio's definitions in plain torch: its sinc-Hann resampler and its slaney mel filters.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

SAMPLE_RATE = 16000
"""Samples per second that the audio VAE was trained on."""

_NUM_FFT = 1024
_HOP = 160
_NUM_MELS = 64
_MAX_HZ = 8000.0
_FLOOR = 1e-5
"""Silence: magnitudes below it count as it, so the logarithm ends at -11.5."""

_LOWPASS_WIDTH = 6
"""Zero crossings of the sinc on each side."""
_ROLLOFF = 0.99
"""Cutoff as a fraction of the lower Nyquist frequency."""


def log_mel(waveform: Tensor, sample_rate: int) -> Tensor:
    """[B, C, S] in [-1, 1] at any rate -> natural log of mel magnitudes [B, C, 1 + S16 // 160, 64],
    where S16 is the length at 16 kHz. Needs more than 512 samples at 16 kHz (32 ms)."""
    waveform = resample(waveform.float(), sample_rate, SAMPLE_RATE)
    spectrum = torch.stft(
        waveform.flatten(0, 1),
        n_fft=_NUM_FFT,
        hop_length=_HOP,
        window=torch.hann_window(_NUM_FFT, device=waveform.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    ).abs()
    mel = spectrum.transpose(1, 2) @ _mel_filters().to(waveform.device)
    return mel.clamp(min=_FLOOR).log().unflatten(0, waveform.shape[:2])


def resample(waveform: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """[..., S] -> [..., ceil(S * target / source)], band-limited by a Hann-windowed sinc."""
    if source_rate == target_rate:
        return waveform
    divisor = math.gcd(source_rate, target_rate)
    source, target = source_rate // divisor, target_rate // divisor
    kernels, reach = _resample_kernels(source, target)
    length = waveform.shape[-1]
    rows = waveform.reshape(-1, 1, length)
    rows = torch.nn.functional.pad(rows, (reach, reach + source))
    phases = torch.nn.functional.conv1d(rows, kernels.to(rows), stride=source)  # [R, target, K]
    out = phases.transpose(1, 2).flatten(1)[:, : math.ceil(target * length / source)]
    return out.reshape(*waveform.shape[:-1], -1)


@lru_cache(maxsize=8)
def _resample_kernels(source: int, target: int) -> tuple[Tensor, int]:
    """One FIR filter per output phase, [target, 1, 2 * reach + source], and its reach in samples.

    In float32 from the start, as torchaudio builds them for float32 waveforms: bit-equal.
    """
    cutoff = min(source, target) * _ROLLOFF
    reach = math.ceil(_LOWPASS_WIDTH * source / cutoff)
    offset = torch.arange(-reach, reach + source, dtype=torch.float32) / source
    phase = -torch.arange(target, dtype=torch.float32) / target
    time = (phase[:, None] + offset[None]) * cutoff
    time = time.clamp(-_LOWPASS_WIDTH, _LOWPASS_WIDTH)
    window = torch.cos(time * math.pi / _LOWPASS_WIDTH / 2) ** 2
    angle = time * math.pi
    sinc = torch.where(angle == 0, 1.0, angle.sin() / angle)
    return (sinc * (window * (cutoff / source)))[:, None], reach


@lru_cache(maxsize=1)
def _mel_filters() -> Tensor:
    """[513, 64]: triangles between equally spaced mels, each of area 1 (slaney's)."""
    hz = torch.linspace(0, SAMPLE_RATE / 2, _NUM_FFT // 2 + 1)
    mels = torch.linspace(0.0, _hz_to_mel(_MAX_HZ), _NUM_MELS + 2)
    corners = _mel_to_hz(mels)
    widths = corners.diff()
    slopes = corners[None] - hz[:, None]  # [513, 66]
    rising = -slopes[:, :-2] / widths[:-1]
    falling = slopes[:, 2:] / widths[1:]
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return triangles * (2.0 / (corners[2:] - corners[:-2]))


# Slaney's mel scale: linear up to 1000 Hz (15 mels), then 27 steps for every factor of 6.4.
_LINEAR_HZ_PER_MEL = 200.0 / 3
_LOG_FROM_HZ = 1000.0
_LOG_FROM_MEL = _LOG_FROM_HZ / _LINEAR_HZ_PER_MEL
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    if hz < _LOG_FROM_HZ:
        return hz / _LINEAR_HZ_PER_MEL
    return _LOG_FROM_MEL + math.log(hz / _LOG_FROM_HZ) / _LOG_STEP


def _mel_to_hz(mels: Tensor) -> Tensor:
    linear = mels * _LINEAR_HZ_PER_MEL
    logarithmic = _LOG_FROM_HZ * torch.exp(_LOG_STEP * (mels - _LOG_FROM_MEL))
    return torch.where(mels < _LOG_FROM_MEL, linear, logarithmic)
