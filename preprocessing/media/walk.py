"""When the frames of a file are shown: from its packets if they tell, else by decoding them all."""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.errors import MediaError
from preprocessing.media.containers import open_video
from preprocessing.media.decode import (
    FrameDecoder,
    decoded,
    packets,
    sound_stream,
    video_stream,
)
from preprocessing.names import short
from preprocessing.report import AudioFacts

MAX_FRAMES: Final = 500_000
"""Frames of one clip: 4.6 hours at 30 per second. Beyond, reading it is the attack."""

_VP8_SHOWN: Final = 0x10
"""Bit of a VP8 frame's first byte; frames without it are references that nobody sees."""

_FALLBACK_TIME_BASE: Final = Fraction(1, 1000)
_FALLBACK_RATE: Final = Fraction(24)


@dataclass(frozen=True)
class FrameTimes:
    """Ascending times of all frames in units of ``time_base`` seconds."""

    ticks: Sequence[int]
    time_base: Fraction
    last_duration: Fraction = Fraction(0)
    """Seconds; 0 if unknown."""
    has_times: bool = True
    """Decoded frames carry these very ticks; else they are told apart by their order."""
    damaged: bool = False
    """Parts of the file could not be read."""


@dataclass(frozen=True)
class Contents:
    """What one pass over a file found."""

    times: FrameTimes | None
    """None where the packets do not tell which frames will come."""
    picture: av.VideoFrame
    """The first frame."""
    sound: AudioFacts | None


def read_through(
    container: InputContainer, video: VideoStream, name: str, *, decode_order: bool
) -> Contents:
    """Read all packets; decode the first frame and the first sound.

    ``decode_order``: the container stores no presentation times (AVI), and FFmpeg's guesses at
    them are wrong where frames are reordered; the n-th frame shown then takes the n-th time.
    Raises `MediaError` where no frame decodes.
    """
    sound = sound_stream(container)
    frames = _FrameWalk(video, name, decode_order=decode_order)
    track = _SoundWalk(sound) if sound else None
    for packet in packets(container, video, *([sound] if sound else [])):
        if packet is None or packet.stream_index == video.index:
            frames.read(packet)
        elif track is not None:
            track.read(packet)
    if frames.picture is None:
        raise nothing_decodes(name)
    return Contents(frames.times(), frames.picture, track.facts() if track else None)


class _FrameWalk:
    """Frame times, packet by packet."""

    def __init__(self, stream: VideoStream, name: str, *, decode_order: bool) -> None:
        self.picture: av.VideoFrame | None = None
        self._name = name
        self._decode_order = decode_order
        self._decoder = FrameDecoder(stream, name)
        self._time_base = stream.time_base or _FALLBACK_TIME_BASE
        self._is_vp8 = stream.codec_context.name == "vp8"
        self._ticks: list[int] = []
        self._first_key: int | None = None
        self._highest, self._last_duration = 0, 0
        self._trusted = True

    def read(self, packet: Any) -> None:
        if self.picture is None:
            self.picture = next(iter(self._decoder.decode(packet)), None)
        if packet is None or packet.is_discard:
            return
        if self._is_vp8 and not memoryview(packet)[0] & _VP8_SHOWN:
            return
        tick = packet.dts if self._decode_order else packet.pts
        if tick is None or packet.is_corrupt:
            self._trusted = False
            return
        if self._first_key is None and packet.is_keyframe:
            self._first_key = tick
        if not self._ticks or tick > self._highest:
            self._highest, self._last_duration = tick, packet.duration or 0
        self._ticks.append(tick)
        _check_length(len(self._ticks), self._name)

    def times(self) -> FrameTimes | None:
        ticks = sorted(self._ticks)
        if not self._trusted or not _ascending(ticks) or self._first_key != ticks[0]:
            return None
        has_times = not self._decode_order
        if has_times and (self.picture is None or self.picture.pts != ticks[0]):
            return None
        last_duration = self._last_duration * self._time_base
        return FrameTimes(ticks, self._time_base, last_duration, has_times)


class _SoundWalk:
    """Facts of a soundtrack, packet by packet."""

    def __init__(self, stream: AudioStream) -> None:
        self._stream = stream
        self._frame: av.AudioFrame | None = None
        self._start: int | None = None
        self._end = 0

    def read(self, packet: Any) -> None:
        if self._frame is None:
            with contextlib.suppress(av.error.InvalidDataError):
                self._frame = next(iter(self._stream.codec_context.decode(packet)), None)
        if packet.pts is not None and not packet.is_discard:
            self._start = packet.pts if self._start is None else self._start
            self._end = packet.pts + (packet.duration or 0)

    def facts(self) -> AudioFacts | None:
        """None where nothing decodes: for a training, that is a silent clip."""
        if self._frame is None or self._start is None or self._stream.time_base is None:
            return None
        return AudioFacts(
            codec=self._stream.codec_context.name,
            sample_rate=self._frame.sample_rate,
            channels=self._frame.layout.nb_channels,
            duration_s=float((self._end - self._start) * self._stream.time_base),
        )


def count_by_decoding(path: Path, name: str, *, decode_order: bool) -> FrameTimes:
    """Decode everything. Raises `MediaError` where not one frame comes."""
    ticks: list[int | None] = []
    duration = 0
    with open_video(path, name) as (container, _):
        stream = video_stream(container, name)
        time_base = stream.time_base or _FALLBACK_TIME_BASE
        rate = stream.average_rate or stream.guessed_rate or _FALLBACK_RATE
        for frame in decoded(container, stream, name, deinterlace=False):
            ticks.append(frame.pts)
            duration = frame.duration or 0
            _check_length(len(ticks), name)
    if not ticks:
        raise nothing_decodes(name)
    known = [tick for tick in ticks if tick is not None]
    if decode_order or len(known) < len(ticks) or not _ascending(known):
        return FrameTimes(range(len(ticks)), 1 / Fraction(rate), has_times=False, damaged=True)
    return FrameTimes(known, time_base, duration * time_base, damaged=True)


def nothing_decodes(name: str) -> MediaError:
    return MediaError(
        f"Not one frame of {short(name)} can be decoded: it is damaged or cut off. Export it "
        "again as H.264 in .mp4.",
        reason="unreadable",
    )


def _ascending(ticks: Sequence[int]) -> bool:
    return bool(ticks) and all(a < b for a, b in itertools.pairwise(ticks))


def _check_length(num_frames: int, name: str) -> None:
    if num_frames > MAX_FRAMES:
        raise MediaError(
            f"{short(name)} has more than {MAX_FRAMES} frames. Cut it into shorter clips.",
            reason="too_long",
            type="video_duration_too_long",
            ctx={"max_frames": MAX_FRAMES},
        )
