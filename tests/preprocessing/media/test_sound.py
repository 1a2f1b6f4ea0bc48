"""The soundtrack of a sample: in sync, of the right length, at its pitch and level."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessing.media import FittedAudio, Span, fit_audio, fit_video, probe_video
from preprocessing.media.sound import PEAK
from tests.preprocessing.media.made import Sound, numbered_clip, rule, tone

LOSSLESS: dict[str, Any] = {"sound_codec": "pcm_s16le", "sound_format": "s16"}


def click(seconds: float, at: float, rate: int = 48_000) -> Sound:
    """Silence with 5 ms of noise that begins ``at`` seconds."""
    sound = np.zeros((2, round(seconds * rate)), np.float32)
    start = round(at * rate)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, rate // 200))
    sound[:, start : start + noise.shape[1]] = noise
    return sound


def fitted_sound(
    path: Path, span: Span | None = None, **values: object
) -> tuple[Sound, FittedAudio, float]:
    clip = probe_video(path, path.name)
    asked = rule(**values)
    video = fit_video(clip, span or clip.whole, asked, path.with_suffix(".npy"))
    out = path.with_suffix(".audio.npy")
    audio = fit_audio(clip, video, asked, out)
    samples = np.load(out)
    assert samples.dtype == np.float32
    assert samples.shape == (2, round(video.num_frames / video.frame_rate * audio.sample_rate))
    assert np.abs(samples).max() <= 1
    return samples, audio, video.time_scale


def onset(samples: Sound, rate: int) -> float:
    """Seconds at which it becomes loud."""
    loud = np.abs(samples).max(axis=0)
    return float(np.argmax(loud > 0.3 * loud.max())) / rate


CODECS: dict[str, tuple[str, dict[str, Any]]] = {
    "aac in mp4": (".mp4", {}),
    "aac in mkv": (".mkv", {}),
    "opus in mkv": (".mkv", {"sound_codec": "libopus", "sound_format": "flt"}),
    "flac in mkv": (".mkv", {"sound_codec": "flac", "sound_format": "s16"}),
    "pcm in mov": (".mov", LOSSLESS),
    "pcm in avi": (".avi", LOSSLESS),
}


def as_stored(sound: Sound, how: dict[str, Any]) -> Any:
    """Interleaved 16-bit where the codec wants that."""
    if how.get("sound_format") == "s16":
        return (sound * 32767).astype(np.int16)
    return sound


@pytest.mark.parametrize(("suffix", "how"), CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("start_frame", [0, 40])
def test_a_click_stays_at_its_frame(
    tmp_path: Path, suffix: str, how: dict[str, Any], start_frame: int
) -> None:
    """A click at frame 50 of the clip is as far from the window's start as that frame is."""
    sound = as_stored(click(4, at=50 / 25), how)
    path = numbered_clip(tmp_path / f"clip{suffix}", 100, sound=sound, **how)
    clip = probe_video(path, path.name)
    assert clip.facts.audio is not None
    assert clip.facts.audio.duration_s == pytest.approx(4, abs=0.05)
    span = Span(Fraction(start_frame, 25), clip.whole.end)
    samples, audio, _ = fitted_sound(path, span, num_frames=57)
    assert onset(samples, audio.sample_rate) == pytest.approx((50 - start_frame) / 25, abs=0.003)


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_a_click_stays_at_its_time_when_frames_are_resampled(tmp_path: Path, rate: int) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 3 * rate, rate=rate, sound=click(3, at=1.5))
    samples, audio, time_scale = fitted_sound(path, num_frames=49, auto_scale=True)
    assert time_scale == 1
    assert onset(samples, audio.sample_rate) == pytest.approx(1.5, abs=0.003)


@pytest.mark.parametrize("seconds", [1.0, 1.6, 0.6], ids=str)
def test_stretched_sound_keeps_sync_and_pitch(tmp_path: Path, seconds: float) -> None:
    count = round(seconds * 25)
    at = (np.arange(round(seconds * 48_000)) / 48_000 - seconds / 2) / 0.02
    beep = (tone(seconds, 440) * np.exp(-(at**2))).astype(np.float32)
    path = numbered_clip(tmp_path / "clip.mkv", count, sound=beep)
    samples, audio, time_scale = fitted_sound(path, num_frames=49, auto_scale=True)
    assert time_scale == pytest.approx(49 / 24 / seconds)
    assert f"stretched x{time_scale:.2f}" in audio.description
    # The beep is in the middle of the clip, so within a frame of the middle of the sample.
    power = samples[0].astype(float) ** 2
    centre = np.average(np.arange(len(power)), weights=power) / audio.sample_rate
    assert centre == pytest.approx(49 / 24 / 2, abs=1 / 24)
    spectrum = np.abs(np.fft.rfft(samples[0]))
    pitch = np.argmax(spectrum) * audio.sample_rate / samples.shape[1]
    assert pitch == pytest.approx(440, abs=10)


def test_without_pitch_the_sound_is_left_as_it_is_and_padded(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "clip.mkv", 25, sound=tone(1, 440))
    samples, audio, _ = fitted_sound(
        path, num_frames=49, auto_scale=True, audio_preserve_pitch=False
    )
    assert "silence" in audio.description
    assert np.abs(samples[:, 40_000:47_000]).max() > 0.5
    assert np.abs(samples[:, 49_000:]).max() == 0


def test_sound_shorter_than_the_picture_is_padded(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 125, sound=tone(2, 440))
    samples, _, _ = fitted_sound(path, num_frames=121)
    assert np.abs(samples[:, : 2 * 47_000]).max() > 0.5
    assert np.abs(samples[:, 2 * 48_000 + 3000 :]).max() == 0


def test_window_after_the_end_of_the_sound_is_silent(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 125, sound=tone(1, 440))
    samples, audio, _ = fitted_sound(path, Span(Fraction(4), Fraction(5)), num_frames=25)
    assert np.abs(samples).max() == 0
    assert "silent" in audio.description


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_that_starts_late(tmp_path: Path, suffix: str) -> None:
    path = numbered_clip(
        tmp_path / f"clip{suffix}", 75, sound=tone(2, 440), sound_start_s=1.0, options={"bf": "0"}
    )
    samples, audio, _ = fitted_sound(path, num_frames=73)
    assert onset(samples, audio.sample_rate) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("seconds", [100, 1000])
def test_late_clip_keeps_its_sound(tmp_path: Path, seconds: int) -> None:
    """Both tracks start at the same odd time."""
    path = numbered_clip(
        tmp_path / "clip.mkv",
        75,
        ticks=[seconds * 25 + i for i in range(75)],
        time_base=Fraction(1, 25),
        sound=click(3, at=1),
        sound_start_s=seconds,
    )
    samples, audio, _ = fitted_sound(path, num_frames=73)
    assert onset(samples, audio.sample_rate) == pytest.approx(1.0, abs=0.003)


def layouts(channels: int, rate: int, level: float) -> Sound:
    wave = level * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


@pytest.mark.parametrize(
    ("layout", "channels", "rate", "kept_rate"),
    [
        ("mono", 1, 8_000, 8_000),
        ("mono", 1, 44_100, 44_100),
        ("stereo", 2, 22_050, 22_050),
        ("5.1", 6, 48_000, 48_000),
        ("7.1", 8, 192_000, 48_000),
    ],
)
def test_layouts_and_rates(
    tmp_path: Path, layout: str, channels: int, rate: int, kept_rate: int
) -> None:
    path = numbered_clip(
        tmp_path / "clip.mkv",
        25,
        sound=layouts(channels, rate, 0.25),
        sound_codec="pcm_f32le",
        sound_format="flt",
        sound_layout=layout,
        sound_rate=rate,
    )
    facts = probe_video(path, "clip").facts.audio
    assert facts is not None
    assert (facts.channels, facts.sample_rate) == (channels, rate)
    samples, audio, _ = fitted_sound(path, audio_normalize=False)
    assert audio.sample_rate == kept_rate
    middle = samples[:, samples.shape[1] // 4 : -samples.shape[1] // 4]
    peaks = np.abs(middle).max(axis=1)
    if channels <= 2:
        assert peaks == pytest.approx(0.25, abs=0.01)
    else:
        assert peaks.min() > 0.25
        assert "mixed down" in audio.description


@pytest.mark.parametrize("level", [0.001953125, 0.25, 1.0, 3.0])
def test_peak_is_normalised(tmp_path: Path, level: float) -> None:
    path = numbered_clip(
        tmp_path / "clip.mkv",
        25,
        sound=layouts(2, 48_000, level),
        sound_codec="pcm_f32le",
        sound_format="flt",
    )
    samples, audio, _ = fitted_sound(path)
    assert np.abs(samples).max() == pytest.approx(PEAK, abs=1e-3)
    assert "to -1.0 dBFS" in audio.description
    as_is, _, _ = fitted_sound(path, audio_normalize=False)
    assert np.abs(as_is).max() == pytest.approx(min(level, 1.0), rel=1e-2)


@pytest.mark.parametrize("level", [0.0, 1e-5])
def test_silence_stays_silence(tmp_path: Path, level: float) -> None:
    path = numbered_clip(
        tmp_path / "clip.mkv",
        25,
        sound=layouts(2, 48_000, level),
        sound_codec="pcm_f32le",
        sound_format="flt",
    )
    samples, audio, _ = fitted_sound(path)
    assert np.abs(samples).max() <= level
    assert audio.description == "silent, left as it is"


def test_samples_that_are_no_numbers_are_silenced(tmp_path: Path) -> None:
    sound = layouts(2, 48_000, 0.5)
    sound[:, 1000:1010] = np.nan
    sound[:, 2000] = np.inf
    path = numbered_clip(
        tmp_path / "clip.mkv", 25, sound=sound, sound_codec="pcm_f32le", sound_format="flt"
    )
    samples, audio, _ = fitted_sound(path)
    assert np.isfinite(samples).all()
    assert np.abs(samples).max() == pytest.approx(PEAK, abs=1e-3)
    assert "22 samples were no numbers" in audio.description


def test_clip_without_sound(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 25)
    assert probe_video(path, "clip").facts.audio is None


def test_real_clip(tmp_path: Path, bunny: Path) -> None:
    clip = probe_video(bunny, "bunny.mp4")
    assert clip.facts.audio is not None
    assert (clip.facts.audio.codec, clip.facts.audio.channels) == ("aac", 6)
    asked = rule(num_frames=121)
    video = fit_video(clip, clip.whole, asked, tmp_path / "out.npy")
    audio = fit_audio(clip, video, asked, tmp_path / "audio.npy")
    samples = np.load(tmp_path / "audio.npy")
    assert samples.shape == (2, round(121 / 25 * audio.sample_rate))
    assert np.abs(samples).max() == pytest.approx(PEAK, abs=1e-3)
