"""Frames of one sample: chosen by time, fitted one by one, written as they come."""

import bisect
import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final, Protocol, Self

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from PIL import ExifTags, Image

from preprocessing.errors import MediaError
from preprocessing.media.clip import Clip, FittedVideo
from preprocessing.media.containers import MAX_IMAGE_PIXELS, open_image, open_video
from preprocessing.media.decode import decoded, video_stream
from preprocessing.media.errors import MissingFrames, TooShort
from preprocessing.media.geometry import Cover, Orientation
from preprocessing.media.graph import FrameFitter, Pixels
from preprocessing.media.probe import recount
from preprocessing.media.timeline import MIN_SOURCE_FRAMES, FramePlan, Span, plan
from preprocessing.media.walk import nothing_decodes
from preprocessing.names import short
from preprocessing.rules import DatasetRule

IMAGE_FRAME_RATE: Final = Fraction(24)
"""Frames per second of a still: LTX-2.3's own, so that it looks like a clip's first frame
(`ltx-training.md` 1.7)."""

SLOW: Final = 2.0
"""Time scale above which a clip visibly crawls; worth a warning."""


def fit_video(clip: Clip, span: Span, rule: DatasetRule, out: Path) -> FittedVideo:
    """Write one sample from ``span`` to ``out``: uint8 [num_frames, height, width, 3], RGB.

    Frames are chosen by `timeline.plan`, decoded, resized to cover, cut and converted one at a
    time; nothing but a few source frames is held.

    Raises `TooShort`, or `MediaError` where frames do not decode.
    """
    try:
        return _fit(clip, span, rule, out)
    except MissingFrames:
        counted = recount(clip)
    try:
        return _fit(counted, Span(span.start, min(span.end, counted.whole.end)), rule, out)
    except MissingFrames:
        raise MediaError(
            f"{short(clip.name)} is damaged: frames between {float(span.start):.1f} s and "
            f"{float(span.end):.1f} s do not decode. Export it again.",
            reason="unreadable",
        ) from None


def probe_and_fit_image(path: Path, name: str, rule: DatasetRule, out: Path) -> FittedVideo:
    """Write a still PNG or JPEG as one frame [1, height, width, 3]. Raises `MediaError`."""
    try:
        return _fit_image(path, name, rule, out)
    except MediaError as error:
        if error.type != MediaError.default_type:
            raise
        # What decodes clips speaks of clips.
        message = error.message
        if error.reason == "unreadable":
            message = (
                f"{short(name)} can't be decoded: it is damaged or cut off. Save it again as PNG "
                "or JPEG."
            )
        raise MediaError(
            message, reason=error.reason, type="unsupported_image_format", ctx=error.ctx
        ) from error


def _fit_image(path: Path, name: str, rule: DatasetRule, out: Path) -> FittedVideo:
    with open_image(path, name) as (container, _):
        stream = video_stream(container, name, MAX_IMAGE_PIXELS)
        frame = next(decoded(container, stream, name), None)
        if frame is None:
            raise nothing_decodes(name)
        fitter = FrameFitter(rule.width, rule.height, lambda: None, name, _photo_orientation(path))
        with _FrameFile(out, 1, rule) as frames:
            frames.write(0, fitter.fit(frame))
    assert fitter.cover is not None
    return FittedVideo(
        start_s=0.0,
        end_s=0.0,
        num_source_frames=1,
        num_frames=1,
        frame_rate=IMAGE_FRAME_RATE,
        width=rule.width,
        height=rule.height,
        scaled_width=fitter.cover.width,
        scaled_height=fitter.cover.height,
        time_scale=1.0,
    )


def _photo_orientation(path: Path) -> Orientation:
    """How the camera was held. Read by Pillow: PyAV can't tell a mirror from a turn here."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            return Orientation.of_exif(image.getexif().get(ExifTags.Base.Orientation, 1))
    except (OSError, ValueError, SyntaxError, struct.error):
        # FFmpeg decoded it; what Pillow can't read is a broken note, not a broken picture.
        return Orientation()


def _fit(clip: Clip, span: Span, rule: DatasetRule, out: Path) -> FittedVideo:
    chosen = plan(clip.timeline, span, rule)
    if chosen is None:
        raise _too_short(clip, span, rule)
    cover = write_frames(clip, chosen, rule, out)
    warnings = list(clip.warnings)
    if chosen.time_scale > SLOW:
        warnings.append(
            f"only {chosen.num_source_frames} frames: played {float(chosen.time_scale):.1f} times "
            "slower to fill the sample"
        )
    return FittedVideo(
        start_s=float(chosen.window.start),
        end_s=float(chosen.window.end),
        num_source_frames=chosen.num_source_frames,
        num_frames=rule.num_frames,
        frame_rate=chosen.frame_rate,
        width=rule.width,
        height=rule.height,
        scaled_width=cover.width,
        scaled_height=cover.height,
        time_scale=float(chosen.time_scale),
        warnings=tuple(warnings),
        source_times=tuple(clip.timeline.start_of(index) for index in chosen.indices),
    )


class Size(Protocol):
    """Pixels that a frame is fitted to."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


def write_frames(clip: Clip, chosen: FramePlan, size: Size, out: Path) -> Cover:
    """Decode, fit and write the chosen frames. Raises `MissingFrames` where one does not come."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, index in enumerate(chosen.indices):
        places[index].append(place)
    first, last = min(places), max(places)
    with (
        open_video(clip.path, clip.name) as (container, _),
        _FrameFile(out, len(chosen.indices), size) as frames,
    ):
        stream = video_stream(container, clip.name)
        fitter = FrameFitter(size.width, size.height, lambda: stream.sample_aspect_ratio, clip.name)
        for index, frame in numbered(container, stream, clip, first):
            if index in places:
                fitted = fitter.fit(frame)
                for place in places.pop(index):
                    frames.write(place, fitted)
            if index >= last:
                break
    if places:
        out.unlink()
        raise MissingFrames
    assert fitter.cover is not None
    return fitter.cover


def numbered(
    container: InputContainer, stream: VideoStream, clip: Clip, first: int
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames with their numbers, from somewhere at or before frame ``first`` on."""
    if not clip.has_times:
        yield from enumerate(decoded(container, stream, clip.name))
        return
    ticks = clip.timeline.ticks
    if first:
        container.seek(ticks[first], stream=stream)
    for frame in decoded(container, stream, clip.name):
        index = bisect.bisect_left(ticks, frame.pts if frame.pts is not None else ticks[-1] + 1)
        if index < len(ticks) and ticks[index] == frame.pts:
            yield index, frame


class _FrameFile:
    """A ``.npy`` of uint8 [num_frames, height, width, 3], written frame by frame.

    Not a memory map: faulting its pages in costs more than writing, and a full disk ends the
    process where writing raises `OSError`.
    """

    def __init__(self, out: Path, num_frames: int, size: Size) -> None:
        self._file = out.open("wb")
        shape = (num_frames, size.height, size.width, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._begin = self._file.tell()
        self._frame_size = size.height * size.width * 3
        if hasattr(os, "posix_fallocate"):
            # A disk without room for the sample says so before anything is decoded.
            size_bytes = self._begin + num_frames * self._frame_size
            os.posix_fallocate(self._file.fileno(), 0, size_bytes)

    def write(self, place: int, frame: Pixels) -> None:
        self._file.seek(self._begin + place * self._frame_size)
        self._file.write(np.ascontiguousarray(frame).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _too_short(clip: Clip, span: Span, rule: DatasetRule) -> TooShort:
    there = len(clip.timeline.frames_in(span))
    needed = min(rule.num_frames, MIN_SOURCE_FRAMES) if rule.auto_scale else rule.num_frames
    advice = (
        "A still is not stretched: send a clip that moves."
        if rule.auto_scale
        else "Send a longer clip, ask for fewer frames, or turn on auto_scale_input."
    )
    return TooShort(
        f"{short(clip.name)} has {there} frames where {needed} are needed. {advice}",
        ctx={"provided_frames": there, "min_frames": needed},
    )
