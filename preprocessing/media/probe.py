"""What a clip is, found by reading it rather than its header."""

from dataclasses import dataclass, replace
from pathlib import Path

import av

from preprocessing.errors import MediaError
from preprocessing.media.clip import Clip
from preprocessing.media.containers import AVI, MIN_SIDE, open_video, too_small
from preprocessing.media.decode import decoded, decoded_sound, sound_stream, video_stream
from preprocessing.media.look import Look, look_at
from preprocessing.media.timeline import MAX_RATE, measure
from preprocessing.media.walk import (
    FrameTimes,
    count_by_decoding,
    nothing_decodes,
    walk_packets,
)
from preprocessing.names import short
from preprocessing.report import AudioFacts, VideoFacts


def probe_video(path: Path, name: str) -> Clip:
    """Find out what ``path`` is. ``name`` is what the archive calls it.

    Every packet is read for its time, which is cheap, and the first frame is decoded for the
    picture. Where packets do not tell which frames will come (damage, hidden frames, missing
    times), all frames are decoded and counted.

    Raises `MediaError`: not a video, no picture, too large, too long, nothing decodes.
    """
    with open_video(path, name) as (container, demuxer):
        stream = video_stream(container, name)
        decode_order = demuxer is AVI
        times = walk_packets(container, stream, name, decode_order=decode_order)
        hints = [rate for rate in (stream.guessed_rate, stream.average_rate) if rate]
        codec = stream.codec_context.name
    picture = _first_picture(path, name)
    if times is None or (times.has_times and picture.tick != times.ticks[0]):
        times = count_by_decoding(path, name, decode_order=decode_order)
    timeline = measure(times.ticks, times.time_base, hints, times.last_duration)
    if timeline.rate > MAX_RATE:
        raise MediaError(
            f"{short(name)} claims {float(timeline.rate):.0f} frames per second; its times are "
            "broken. Export it again.",
            reason="broken_times",
        )
    look = picture.look
    width, height = (round(side) for side in look.display_size)
    facts = VideoFacts(
        container=demuxer.title,
        codec=codec,
        pixel_format=look.pixel_format,
        width=width,
        height=height,
        coded_width=look.width,
        coded_height=look.height,
        rotation_degrees=look.orientation.rotation_degrees,
        sample_aspect_ratio=f"{look.pixel_aspect.numerator}:{look.pixel_aspect.denominator}",
        frame_rate=timeline.rate,
        variable_frame_rate=timeline.variable,
        num_frames=timeline.num_frames,
        duration_s=float(timeline.duration),
        color=str(look.color),
        interlaced=picture.interlaced,
        audio=_sound_facts(path, name),
    )
    return Clip(path, name, facts, timeline, times.has_times, _warnings(facts, times, look))


def recount(clip: Clip) -> Clip:
    """The clip as it decodes, for one whose packets promised frames that do not come."""
    times = count_by_decoding(clip.path, clip.name, decode_order=not clip.has_times)
    timeline = measure(times.ticks, times.time_base, [clip.timeline.rate], times.last_duration)
    counted = {
        "frame_rate": timeline.rate,
        "variable_frame_rate": timeline.variable,
        "num_frames": timeline.num_frames,
        "duration_s": float(timeline.duration),
    }
    facts = clip.facts.model_copy(update=counted)
    return replace(
        clip,
        facts=facts,
        timeline=timeline,
        has_times=times.has_times,
        warnings=(*clip.warnings, *_warnings(facts, times)),
    )


@dataclass(frozen=True)
class _Picture:
    look: Look
    interlaced: bool
    tick: int | None


def _first_picture(path: Path, name: str) -> _Picture:
    with open_video(path, name) as (container, _):
        stream = video_stream(container, name)
        frame = next(decoded(container, stream, name, deinterlace=False), None)
        if frame is None:
            raise nothing_decodes(name)
        look = look_at(frame, stream.sample_aspect_ratio, name)
        if min(look.width, look.height) < MIN_SIDE:
            raise too_small(name, look.width, look.height)
        return _Picture(look, frame.interlaced_frame, frame.pts)


def _sound_facts(path: Path, name: str) -> AudioFacts | None:
    """Facts of the soundtrack; None where there is none that decodes."""
    with open_video(path, name) as (container, _):
        stream = sound_stream(container)
        if stream is None or stream.time_base is None:
            return None
        codec, time_base = stream.codec_context.name, stream.time_base
        first = end = None
        try:
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None and not packet.is_discard:
                    first = packet.pts if first is None else first
                    end = packet.pts + (packet.duration or 0)
        except av.error.InvalidDataError:
            pass  # Cut off: what came before counts.
    with open_video(path, name) as (container, _):
        stream = sound_stream(container)
        frame = next(decoded_sound(container, stream), None) if stream else None
    if frame is None or first is None or end is None:
        return None
    return AudioFacts(
        codec=codec,
        sample_rate=frame.sample_rate,
        channels=frame.layout.nb_channels,
        duration_s=float((end - first) * time_base),
    )


def _warnings(facts: VideoFacts, times: FrameTimes, look: Look | None = None) -> tuple[str, ...]:
    warnings = []
    if times.damaged:
        warnings.append(
            f"frames were counted by decoding all {facts.num_frames}: the file is damaged, cut "
            "off or keeps no usable times"
        )
    if facts.variable_frame_rate:
        warnings.append(
            f"variable frame rate: resampled by time from a nominal {facts.frame_rate} per second"
        )
    if look is not None and look.color.hdr:
        warnings.append("HDR: tone-mapped to SDR; a graded SDR export keeps your intent better")
    return tuple(warnings)
