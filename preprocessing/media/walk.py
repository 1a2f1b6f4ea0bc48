"""When the frames of a file are shown: from its packets if they tell, else by decoding them all."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from preprocessing.errors import MediaError
from preprocessing.media.containers import open_video
from preprocessing.media.decode import decoded, video_stream
from preprocessing.names import short

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


def walk_packets(
    container: InputContainer, stream: VideoStream, name: str, *, decode_order: bool
) -> FrameTimes | None:
    """Read all packets; None where they do not tell which frames will come.

    ``decode_order``: the container stores no presentation times (AVI), and FFmpeg's guesses at
    them are wrong where frames are reordered; the n-th frame shown then takes the n-th time.
    """
    time_base = stream.time_base or _FALLBACK_TIME_BASE
    is_vp8 = stream.codec_context.name == "vp8"
    ticks: list[int] = []
    first_key: int | None = None
    last, last_duration = 0, 0
    try:
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:
                continue
            if is_vp8 and not memoryview(packet)[0] & _VP8_SHOWN:
                continue
            tick = packet.dts if decode_order else packet.pts
            if tick is None or packet.is_corrupt:
                return None
            if first_key is None and packet.is_keyframe:
                first_key = tick
            if not ticks or tick > last:
                last, last_duration = tick, packet.duration or 0
            ticks.append(tick)
            _check_length(len(ticks), name)
    except av.error.InvalidDataError:
        return None
    ticks.sort()
    if not _ascending(ticks) or first_key != ticks[0]:
        return None
    return FrameTimes(ticks, time_base, last_duration * time_base, has_times=not decode_order)


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
