"""MP4 files that play everywhere: H.264 yuv420p, BT.709, AAC stereo where there is sound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from numpy.typing import NDArray

from trainer.generation import Encoding

SAMPLE_RATE: Final = 48_000
"""Hz; what LTX-2.3's vocoder makes."""

AUDIO_BIT_RATE: Final = 192_000
"""Bits per second, stereo: transparent for AAC-LC."""

AAC_FRAME_SAMPLES: Final = 1024
"""Samples per AAC frame."""

MAX_VIDEO_BIT_RATE: Final = 12_000_000
"""Bits per second. An untrained model makes noise, which a constant quality would spend on."""


@dataclass(frozen=True)
class Compression:
    """How x264 is to compress."""

    crf: int
    """Constant quality; lower is better, 18 is visually lossless."""
    preset: str = "veryfast"
    """x264's; three times as fast as its default, and at a constant quality the price is size."""
    max_bit_rate: int | None = MAX_VIDEO_BIT_RATE
    """Bits per second."""


CRF: Final = {"low": 28, "medium": 23, "high": 18, "maximum": 12}
"""x264's constant quality."""
MAX_BIT_RATE: Final = {
    "low": 8_000_000,
    "medium": 16_000_000,
    "high": 40_000_000,
    "maximum": None,
}
"""Bits per second. Reached by noise only; a file should not be as large as its frames."""
PRESET: Final = {"fast": "superfast", "balanced": "medium", "small": "slower"}
"""x264's. At one quality, superfast takes a quarter of medium's time and half as many bytes again,
slower takes three times as long and saves up to a tenth."""


EXACT: Final = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""swscale without its shortcuts, which darken colours by one or two levels."""


@dataclass(frozen=True)
class Chapter:
    """A stretch of the file in frames, the end excluded, with the title that players show."""

    start_frame: int
    end_frame: int
    title: str


def num_audio_samples(num_frames: int, frame_rate: Fraction) -> int:
    """Samples of sound that last as long as ``num_frames`` pictures."""
    return round(num_frames / frame_rate * SAMPLE_RATE)


class Mp4Writer:
    """Writes one file, through a name of its own until it is whole; a context manager.

    When the block is left by an exception, no file appears at ``path``.
    """

    def __init__(
        self,
        path: Path,
        *,
        width: int,
        height: int,
        frame_rate: Fraction,
        with_audio: bool,
        compression: Compression,
        metadata: Mapping[str, str] | None = None,
        chapters: Sequence[Chapter] = (),
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"yuv420p needs even sides, not {width}x{height}")
        self.path = path
        self.with_audio = with_audio
        self._aside = path.with_name(path.name + ".part")
        self._container = av.open(
            str(self._aside), "w", format="mp4", options={"movflags": "+faststart"}
        )
        self._container.metadata.update(metadata or {})
        self._container.set_chapters(
            [
                {
                    "id": number,
                    "start": chapter.start_frame,
                    "end": chapter.end_frame,
                    "time_base": 1 / frame_rate,
                    "metadata": {"title": chapter.title},
                }
                for number, chapter in enumerate(chapters)
            ]
        )
        self._video = self._container.add_stream(
            "libx264",
            rate=frame_rate,
            options=_x264_options(compression),
        )
        self._video.width, self._video.height = width, height
        self._video.pix_fmt = "yuv420p"
        context = self._video.codec_context
        context.time_base = 1 / frame_rate
        context.colorspace = Colorspace.ITU709
        context.color_range = ColorRange.MPEG
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        self._num_frames = 0

        self._audio = None
        if with_audio:
            self._audio = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
            self._audio.bit_rate = AUDIO_BIT_RATE
        self._num_samples = 0

    def write_frame(self, rgb: NDArray[np.uint8]) -> None:
        """Append one picture [H, W, 3]."""
        frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format="yuv420p",
            src_color_range=ColorRange.JPEG,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=EXACT,
        )
        frame.pts = self._num_frames
        frame.time_base = self._video.codec_context.time_base
        self._num_frames += 1
        self._container.mux(self._video.encode(frame))

    def write_audio(self, samples: NDArray[np.float32]) -> None:
        """Append sound [2, S] in [-1, 1]; what is louder is clipped."""
        assert self._audio is not None, "the file was opened without audio"
        samples = np.ascontiguousarray(samples.clip(-1.0, 1.0), dtype=np.float32)
        for start in range(0, samples.shape[1], AAC_FRAME_SAMPLES):
            chunk = np.ascontiguousarray(samples[:, start : start + AAC_FRAME_SAMPLES])
            frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="stereo")
            frame.sample_rate = SAMPLE_RATE
            frame.pts = self._num_samples
            frame.time_base = Fraction(1, SAMPLE_RATE)
            self._num_samples += chunk.shape[1]
            self._container.mux(self._audio.encode(frame))

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._container.mux(self._video.encode(None))
                if self._audio is not None:
                    self._container.mux(self._audio.encode(None))
                self._container.close()
                self._aside.replace(self.path)
        finally:
            self._container.close()
            self._aside.unlink(missing_ok=True)


def write_clip(
    path: Path,
    frames: NDArray[np.uint8],
    frame_rate: Fraction,
    audio: NDArray[np.float32] | None = None,
    *,
    crf: int,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write frames [F, H, W, 3] and sound [2, S] at 48 kHz, cut or padded to the same length."""
    num_frames, height, width, _ = frames.shape
    with Mp4Writer(
        path,
        width=width,
        height=height,
        frame_rate=frame_rate,
        with_audio=audio is not None,
        compression=Compression(crf),
        metadata=metadata,
    ) as writer:
        for frame in frames:
            writer.write_frame(frame)
        if audio is not None:
            writer.write_audio(fit_audio(audio, num_audio_samples(num_frames, frame_rate)))


def _x264_options(compression: Compression) -> dict[str, str]:
    options = {"crf": str(compression.crf), "preset": compression.preset}
    if _has_avx512():
        options["x264-params"] = "asm=avx2"
    if compression.max_bit_rate is not None:
        options["maxrate"] = str(compression.max_bit_rate)
        options["bufsize"] = str(2 * compression.max_bit_rate)
    return options


@cache
def _has_avx512() -> bool:
    """Whether x264 would use AVX-512. Its code for that makes different files of equal frames, with
    one thread as with many; AVX2's makes one, in the same time (`benchmarks/x264_repeats.py`)."""
    try:
        return "avx512" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # not Linux
        return False


def compression_of(encoding: Encoding) -> Compression:
    """x264's settings for fal's words."""
    return Compression(
        crf=CRF[encoding.quality],
        preset=PRESET[encoding.write_mode],
        max_bit_rate=MAX_BIT_RATE[encoding.quality],
    )


def to_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """A frame [H, W, 3] of a file that `Mp4Writer` wrote."""
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=EXACT,
    ).to_ndarray()
    return np.asarray(rgb, dtype=np.uint8)


def fit_audio(samples: NDArray[np.float32], num_samples: int) -> NDArray[np.float32]:
    """Exactly ``num_samples`` of [2, S]: the end is cut, or silence is appended."""
    samples = samples[:, :num_samples]
    return np.pad(samples, ((0, 0), (0, num_samples - samples.shape[1])))
