"""The soundtrack of a sample: cut where its frames are, stereo, fitted in length, normalised."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import InputContainer

from preprocessing.errors import MediaError
from preprocessing.media.clip import Clip, FittedAudio, FittedVideo
from preprocessing.media.containers import open_video
from preprocessing.media.decode import decoded_sound, sound_stream
from preprocessing.media.stretch import resampled, stretched
from preprocessing.names import short

PEAK: Final = 10 ** (-1 / 20)
"""Where the loudest sample goes: -1 dBFS, so that no later resampling or coding clips."""

SILENCE: Final = 10 ** (-60 / 20)
"""A track whose peak is below -60 dBFS is silent: raising it would only raise its noise."""

MAX_SAMPLE_RATE: Final = 48_000
"""Samples per second that are kept. LTX-2.3 hears up to 8 kHz."""

MAX_DRIFT_S: Final = 0.02
"""Seconds that a frame's time may differ from the samples counted so far before it is believed:
containers round times to milliseconds, and following each of them would click."""

PREROLL_S: Final = Fraction(1, 2)
"""Seconds decoded and thrown away before a cut: codecs need some frames to settle."""

Samples = npt.NDArray[np.float32]
"""[2, S]"""


class SoundRule(Protocol):
    """What is asked of a soundtrack (`preprocessing.rules.DatasetRule` has it)."""

    @property
    def audio_normalize(self) -> bool: ...

    @property
    def audio_preserve_pitch(self) -> bool: ...


def fit_audio(clip: Clip, fitted: FittedVideo, rule: SoundRule, out: Path) -> FittedAudio:
    """Write the sound of exactly the window that ``fitted`` shows to ``out``.

    float32 [2, S] in [-1, 1] with S = round(F / frame_rate * sample_rate), at the file's own rate
    up to `MAX_SAMPLE_RATE`. Sound that starts late or ends early is padded with silence. A window
    played slower than it was is stretched at its pitch, or, without ``rule.audio_preserve_pitch``,
    left as it is and padded. Raises `MediaError` where the clip has no sound.
    """
    track = _Track(clip, Fraction(fitted.start_s), Fraction(fitted.end_s))
    samples, sample_rate = track.samples, track.sample_rate
    if sample_rate > MAX_SAMPLE_RATE:
        samples = resampled(samples, sample_rate, MAX_SAMPLE_RATE)
        sample_rate = MAX_SAMPLE_RATE
        track.notes.append(f"resampled to {sample_rate} Hz")
    wanted = round(fitted.num_frames / fitted.frame_rate * sample_rate)
    if fitted.time_scale > 1:
        if rule.audio_preserve_pitch:
            samples = stretched(samples, sample_rate, fitted.time_scale)
            track.notes.append(f"stretched x{fitted.time_scale:.2f} at its pitch")
        else:
            silence = (wanted - samples.shape[1]) / sample_rate
            track.notes.append(f"padded with {silence:.2f} s of silence")
    samples, level = _levelled(_of_length(samples, wanted), normalize=rule.audio_normalize)
    np.save(out, samples)
    return FittedAudio(sample_rate, ", ".join((*track.notes, level)))


class _Track:
    """The sound of a clip from ``start`` to ``end``, in seconds from its first frame.

    ``samples`` [2, S] at the file's ``sample_rate``; silent where the file has nothing.
    """

    def __init__(self, clip: Clip, start: Fraction, end: Fraction) -> None:
        self.notes: list[str] = []
        with open_video(clip.path, clip.name) as (container, _):
            stream = sound_stream(container)
            if stream is None or clip.facts.audio is None:
                raise MediaError(
                    f"{short(clip.name)} has no sound that can be decoded.", reason="no_audio"
                )
            self.sample_rate = clip.facts.audio.sample_rate
            self._start = clip.origin + start
            self.samples = np.zeros((2, round((end - start) * self.sample_rate)), np.float32)
            self._next: int | None = None
            self._converters: dict[tuple[str, str, int], av.AudioResampler] = {}
            if clip.facts.audio.channels > 2:
                self.notes.append(f"{clip.facts.audio.channels} channels mixed down to stereo")
            for frame in _frames_from(container, stream, clip.origin + start):
                if not self._place(frame):
                    break
        finite = np.isfinite(self.samples)
        if not finite.all():
            self.notes.append(f"{np.count_nonzero(~finite)} samples were no numbers: silenced")
            self.samples[~finite] = 0

    def _place(self, frame: av.AudioFrame) -> bool:
        """Copy a frame to where it belongs; False once the window is full."""
        position = self._next
        if frame.pts is not None and frame.time_base is not None:
            at = round((frame.pts * frame.time_base - self._start) * self.sample_rate)
            if position is None or abs(at - position) > MAX_DRIFT_S * self.sample_rate:
                position = at
        position = position or 0
        if position >= self.samples.shape[1]:
            return False
        sound = self._stereo(frame)
        self._next = position + sound.shape[1]
        begin, end = max(position, 0), min(self._next, self.samples.shape[1])
        if begin < end:
            self.samples[:, begin:end] = sound[:, begin - position : end - position]
        return True

    def _stereo(self, frame: av.AudioFrame) -> Samples:
        mono = frame.layout.nb_channels == 1
        key = frame.format.name, frame.layout.name, frame.sample_rate
        if key not in self._converters:
            layout = "mono" if mono else "stereo"
            self._converters[key] = av.AudioResampler("fltp", layout, self.sample_rate)
        frame.pts = None
        parts = [part.to_ndarray() for part in self._converters[key].resample(frame)]
        sound: Samples = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
        # Copied to both sides: swresample would lower a mono track by 3 dB.
        return np.broadcast_to(sound, (2, sound.shape[1]))


def _frames_from(
    container: InputContainer, stream: AudioStream, seconds: Fraction
) -> Iterator[av.AudioFrame]:
    """Sound from a little before ``seconds`` of the container's time on."""
    assert stream.time_base is not None, "probing looked"
    tick = int((seconds - PREROLL_S) / stream.time_base)
    # Not to the very start: the first packets tell the decoder what to skip, and are lost by that.
    if tick > (stream.start_time or 0):
        container.seek(tick, stream=stream)
    return decoded_sound(container, stream)


def _of_length(samples: Samples, wanted: int) -> Samples:
    """Cut or pad with silence at the end."""
    missing = wanted - samples.shape[1]
    return np.pad(samples, ((0, 0), (0, missing))) if missing > 0 else samples[:, :wanted]


def _levelled(samples: Samples, *, normalize: bool) -> tuple[Samples, str]:
    """Bring the peak to `PEAK`; without ``normalize`` only down to full scale where it is above."""
    peak = float(np.abs(samples).max(initial=0))
    if peak < SILENCE:
        return samples, "silent, left as it is"
    if not normalize and peak <= 1:
        return samples, f"peak {20 * np.log10(peak):.1f} dBFS, left as it is"
    target = PEAK if normalize else 1.0
    change = f"peak {20 * np.log10(peak):.1f} to {20 * np.log10(target):.1f} dBFS"
    return np.clip(samples * np.float32(target / peak), -1, 1), change
