"""The validation reel: all previews of a training in one film, to see the LoRA take shape.

The prompts come after each other, and each prompt's previews in the order of their steps: same
prompt, same seed, same place in the picture, so that what the training changed is what changes.
Each preview stands above a strip with its prompt and step, and is a chapter of the file. Previews
made from clips may differ in length, size and rate: the reel has the largest sides, with black
around a smaller picture, and the highest rate, at which a slower preview repeats pictures.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

from trainer.mp4 import (
    SAMPLE_RATE,
    Chapter,
    Compression,
    Mp4Writer,
    fit_audio,
    num_audio_samples,
    to_rgb,
)
from trainer.overlay import Caption, draw_strips, printable

MIN_SEGMENT_S: Final = 2.0
"""Seconds. A shorter preview is repeated, so that its caption can be read."""

MIN_PICTURE_WIDTH: Final = 384
"""Pixels. A narrower picture is enlarged by a whole factor: its strip could not hold a prompt."""

REEL_CRF: Final = 20
"""x264's constant quality; the previews themselves, at 17, stay the reference."""


@dataclass(frozen=True)
class Preview:
    """One rendered sample: ``path`` is an MP4; ``index`` is the prompt's number, from 0."""

    step: int
    index: int
    prompt: str
    path: Path


@dataclass(frozen=True)
class _Segment:
    """One preview as it plays in the reel. The frames are counted at the reel's rate."""

    preview: Preview
    width: int
    height: int
    frame_rate: Fraction
    """The preview's own."""
    num_frames: int
    repeats: int
    with_audio: bool

    @property
    def num_reel_frames(self) -> int:
        return self.num_frames * self.repeats


def make_reel(previews: Sequence[Preview], path: Path, *, num_steps: int) -> None:
    """Join ``previews`` into ``path``; ``num_steps`` are the training's, for the progress shown.

    The reel has sound where a preview has. Raises `ValueError` without previews,
    `FileNotFoundError` where one is missing.
    """
    ordered = sorted(previews, key=lambda preview: (preview.index, preview.step))
    if not ordered:
        raise ValueError("a reel needs at least one preview")
    frame_rate, segments = _survey(ordered)
    width = max(segment.width for segment in segments)
    height = max(segment.height for segment in segments)
    zoom = math.ceil(MIN_PICTURE_WIDTH / width)
    num_prompts = len({preview.index for preview in ordered})
    captions = [
        Caption(
            prompt=preview.prompt,
            prompt_number=preview.index + 1,
            num_prompts=num_prompts,
            step=preview.step,
            num_steps=num_steps,
        )
        for preview in ordered
    ]
    strips = draw_strips(captions, width * zoom)
    with Mp4Writer(
        path,
        width=width * zoom,
        height=height * zoom + strips[0].shape[0],
        frame_rate=frame_rate,
        with_audio=any(segment.with_audio for segment in segments),
        compression=Compression(REEL_CRF),
        metadata={"title": "Validation reel"},
        chapters=_chapters(segments),
    ) as writer:
        for segment, strip in zip(segments, strips, strict=True):
            sound = _sound(segment, frame_rate) if writer.with_audio else None
            for _ in range(segment.repeats):
                for picture in _pictures(segment, frame_rate):
                    whole = _letterboxed(picture, width, height)
                    enlarged = whole.repeat(zoom, axis=0).repeat(zoom, axis=1)
                    writer.write_frame(np.concatenate([enlarged, strip]))
                if sound is not None:
                    writer.write_audio(sound)


def _survey(previews: Sequence[Preview]) -> tuple[Fraction, list[_Segment]]:
    """The reel's rate and its segments: every file is probed before the first picture is written,
    because chapters stand in front."""
    found = []
    for preview in previews:
        with av.open(str(preview.path)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate is not None  # our own files have one
            segment = _Segment(
                preview=preview,
                width=stream.width,
                height=stream.height,
                frame_rate=Fraction(stream.average_rate),
                num_frames=stream.frames,
                repeats=1,
                with_audio=bool(container.streams.audio),
            )
        found.append(segment)
    frame_rate = max(segment.frame_rate for segment in found)
    segments = []
    for segment in found:
        num_frames = math.ceil(segment.num_frames * frame_rate / segment.frame_rate)
        repeats = math.ceil(MIN_SEGMENT_S * frame_rate / num_frames)
        segments.append(replace(segment, num_frames=num_frames, repeats=max(1, repeats)))
    return frame_rate, segments


def _chapters(segments: Sequence[_Segment]) -> list[Chapter]:
    chapters, start = [], 0
    for segment in segments:
        end = start + segment.num_reel_frames
        prompt = printable(segment.preview.prompt) or "(empty prompt)"
        chapters.append(Chapter(start, end, f"Step {segment.preview.step}: {prompt}"))
        start = end
    return chapters


def _pictures(segment: _Segment, frame_rate: Fraction) -> Iterator[NDArray[np.uint8]]:
    """The segment's frames once, [H, W, 3] of one of our own files (BT.709). Each is shown until
    the next one is due; at its own rate, that is once."""
    with av.open(str(segment.preview.path)) as container:
        for number, frame in enumerate(container.decode(video=0), start=1):
            picture = to_rgb(frame)
            per_frame = frame_rate / segment.frame_rate
            shown = math.ceil(number * per_frame) - math.ceil((number - 1) * per_frame)
            yield from [picture] * shown


def _letterboxed(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """``picture`` [H, W, 3] in the middle of black [height, width, 3]."""
    rows, columns = height - picture.shape[0], width - picture.shape[1]
    if not rows and not columns:
        return picture
    above, left = rows // 2, columns // 2
    return np.pad(picture, ((above, rows - above), (left, columns - left), (0, 0)))


def _sound(segment: _Segment, frame_rate: Fraction) -> NDArray[np.float32]:
    """[2, S] as long as the segment's frames once; silence where the preview has none."""
    num_samples = num_audio_samples(segment.num_frames, frame_rate)
    chunks: list[NDArray[np.float32]] = [np.zeros((2, 0), np.float32)]
    if segment.with_audio:
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE)
        with av.open(str(segment.preview.path)) as container:
            for frame in [*container.decode(audio=0), None]:
                for part in resampler.resample(frame):
                    chunks.append(np.asarray(part.to_ndarray(), dtype=np.float32))
    return fit_audio(np.concatenate(chunks, axis=1), num_samples)
