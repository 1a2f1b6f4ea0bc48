"""What a clip is, found by reading it rather than its header."""

from dataclasses import replace
from pathlib import Path

from preprocessing.errors import MediaError
from preprocessing.media.clip import Clip
from preprocessing.media.containers import AVI, MIN_SIDE, open_video, too_small
from preprocessing.media.decode import video_stream
from preprocessing.media.look import Look, look_at
from preprocessing.media.timeline import MAX_RATE, measure
from preprocessing.media.walk import FrameTimes, count_by_decoding, read_through
from preprocessing.names import short
from preprocessing.report import VideoFacts


def probe_video(path: Path, name: str) -> Clip:
    """Find out what ``path`` is. ``name`` is what the archive calls it.

    Every packet is read for its time, which is cheap, and the first frame and the first sound are
    decoded. Where packets do not tell which frames will come (damage, hidden frames, missing
    times), all frames are decoded and counted.

    Raises `MediaError`: not a video, no picture, too large, too long, nothing decodes.
    """
    with open_video(path, name) as (container, demuxer):
        decode_order = demuxer is AVI
        stream = video_stream(container, name)
        contents = read_through(container, stream, name, decode_order=decode_order)
        look = look_at(contents.picture, stream.sample_aspect_ratio, name)
        hints = [rate for rate in (stream.guessed_rate, stream.average_rate) if rate]
        codec = stream.codec_context.name
    if min(look.width, look.height) < MIN_SIDE:
        raise too_small(name, look.width, look.height)
    times = contents.times or count_by_decoding(path, name, decode_order=decode_order)
    timeline = measure(times.ticks, times.time_base, hints, times.last_duration)
    if timeline.rate > MAX_RATE:
        raise MediaError(
            f"{short(name)} claims {float(timeline.rate):.0f} frames per second; its times are "
            "broken. Export it again.",
            reason="broken_times",
        )
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
        interlaced=contents.picture.interlaced_frame,
        audio=contents.sound,
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
