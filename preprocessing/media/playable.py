"""Prepared samples as files that people can play."""

from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer

MATRIX_BT709: Final = 1

_QUALITY: Final = {"crf": "16", "preset": "veryfast"}
"""x264's constant quality at which its losses can't be seen; training faults can."""

_SOUND_FRAME: Final = 1024
"""Samples of one AAC frame."""

_SOUND_RATE: Final = 48_000
"""Samples per second; AAC knows only some rates, and every player knows this one."""


def write_playable(
    frames: Path, frame_rate: Fraction, audio: Path | None, sample_rate: int | None, out: Path
) -> None:
    """Write a sample for people to look at.

    ``frames``: .npy, uint8 [F, H, W, 3]. ``audio``: .npy, float32 [2, S] at ``sample_rate``.
    ``out`` becomes H.264 with AAC in MP4, or a PNG where there is one frame.
    """
    pixels = np.load(frames, mmap_mode="r")
    if len(pixels) == 1:
        _write_png(pixels[0], out)
        return
    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=frame_rate, options=_QUALITY)
        video.height, video.width = pixels.shape[1:3]
        video.pix_fmt = "yuv420p"
        video.colorspace = video.color_primaries = video.color_trc = MATRIX_BT709
        video.color_range = 1
        sound = container.add_stream("aac", rate=_SOUND_RATE, layout="stereo") if audio else None
        for index, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.pts, frame.time_base = index, 1 / frame_rate
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None and audio is not None and sample_rate is not None:
            _write_sound(np.load(audio), sample_rate, sound, container)


def _write_sound(
    samples: "np.ndarray[tuple[int, int], np.dtype[np.float32]]",
    sample_rate: int,
    stream: AudioStream,
    container: OutputContainer,
) -> None:
    converter = av.AudioResampler(
        stream.format, stream.layout, stream.rate, frame_size=_SOUND_FRAME
    )
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
    for part in (*converter.resample(frame), *converter.resample(None)):
        container.mux(stream.encode(part))
    container.mux(stream.encode())


def _write_png(picture: "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]", out: Path) -> None:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    with av.open(str(out), "w", format="image2pipe") as container:
        stream = container.add_stream("png")
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
