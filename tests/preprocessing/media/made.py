"""Clips made in code: every frame tells its number, every oddity is asked for by name."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from numpy.typing import NDArray

from preprocessing.rules import DatasetRule

WIDTH, HEIGHT = 160, 96
_COLUMNS, _ROWS = 5, 2
"""Blocks of 32 x 48 pixels, one bit each: numbers up to 1023 survive any codec and scaling."""

Picture = NDArray[np.uint8]
"""[H, W, 3], RGB."""
Sound = NDArray[np.float32]
"""[channels, S]"""


def rule(**values: object) -> DatasetRule:
    """A rule that wants frames as they are made here; change what the test is about."""
    plain: dict[str, Any] = {"num_frames": 9, "frame_rate": 24, "width": WIDTH, "height": HEIGHT}
    return DatasetRule(**(plain | values))


def numbered(number: int, width: int = WIDTH, height: int = HEIGHT) -> Picture:
    """A picture with ``number`` written into it as bright and dark blocks."""
    bits = [number >> bit & 1 for bit in range(_COLUMNS * _ROWS)]
    blocks = np.array(bits, np.uint8).reshape(_ROWS, _COLUMNS) * 200 + 25
    rows = np.arange(height) * _ROWS // height
    columns = np.arange(width) * _COLUMNS // width
    return np.repeat(blocks[np.ix_(rows, columns)][..., None], 3, axis=-1)


def number_in(picture: Picture) -> int:
    """The number that `numbered` wrote."""
    height, width = picture.shape[:2]
    number = 0
    for bit in range(_COLUMNS * _ROWS):
        row, column = divmod(bit, _COLUMNS)
        y = int((row + 0.5) * height / _ROWS)
        x = int((column + 0.5) * width / _COLUMNS)
        number |= int(picture[y - 4 : y + 5, x - 4 : x + 5].mean() > 125) << bit
    return number


def numbers_in(frames: Path) -> list[int]:
    return [number_in(picture) for picture in np.load(frames)]


def patch(color: tuple[int, int, int], width: int = WIDTH, height: int = HEIGHT) -> Picture:
    return np.full((height, width, 3), color, np.uint8)


@dataclass
class Making:
    """How a clip is written. The defaults make what a phone or an editor would."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    rate: Fraction | int = 25
    options: dict[str, str] = field(default_factory=lambda: {"crf": "12", "preset": "veryfast"})
    ticks: Sequence[int] | None = None
    """Times of the frames in ``time_base``; None is one after another."""
    time_base: Fraction | None = None
    container_options: dict[str, str] = field(default_factory=dict)
    format: str | None = None
    setup: Callable[[Any], None] = lambda stream: None
    """Last touches to the stream before the first frame."""
    sound: Sound | None = None
    sound_rate: int = 48_000
    sound_codec: str = "aac"
    sound_format: str = "fltp"
    sound_layout: str = "stereo"
    sound_start_s: float = 0.0


def make_clip(out: Path, frames: Iterable[Picture | av.VideoFrame], **how: Any) -> Path:
    """Write ``frames`` to ``out``; the keywords are the fields of `Making`."""
    making = Making(**how)
    with av.open(
        str(out), "w", format=making.format, options=making.container_options
    ) as container:
        video: Any = container.add_stream(
            making.codec, rate=Fraction(making.rate), options=making.options
        )
        video.pix_fmt = making.pixel_format
        time_base = making.time_base or 1 / Fraction(making.rate)
        if making.time_base is not None:
            video.time_base = video.codec_context.time_base = time_base
        sound = _add_sound(container, making)
        for index, picture in enumerate(frames):
            frame = picture if isinstance(picture, av.VideoFrame) else _converted(picture, making)
            if index == 0:
                video.width, video.height = frame.width, frame.height
                making.setup(video)
            frame.pts = index if making.ticks is None else making.ticks[index]
            frame.time_base = time_base
            frame.pict_type = PictureType.NONE  # A filter's frames say I, and the encoder obeys.
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            _write_sound(container, sound, making)
    return out


def numbered_clip(out: Path, count: int, **how: Any) -> Path:
    return make_clip(out, (numbered(number) for number in range(count)), **how)


def _converted(picture: Picture, making: Making) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=making.pixel_format)


def _add_sound(container: Any, making: Making) -> Any:
    if making.sound is None:
        return None
    return container.add_stream(
        making.sound_codec,
        rate=making.sound_rate,
        layout=making.sound_layout,
        format=making.sound_format,
    )


def _write_sound(container: Any, stream: Any, making: Making) -> None:
    assert making.sound is not None
    start = round(making.sound_start_s * making.sound_rate)
    step = 1024
    for at in range(0, making.sound.shape[1], step):
        part = np.ascontiguousarray(making.sound[:, at : at + step])
        if not making.sound_format.endswith("p"):
            part = np.ascontiguousarray(part.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(
            part, format=making.sound_format, layout=making.sound_layout
        )
        frame.sample_rate, frame.pts = making.sound_rate, start + at
        frame.time_base = Fraction(1, making.sound_rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def tone(seconds: float, frequency: float, rate: int = 48_000, level: float = 0.5) -> Sound:
    """A sine on both sides."""
    wave = level * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[None].astype(np.float32), 2, axis=0)
