"""Small clips of a prepared dataset, to look at in a list: one per sample, without sound.

DIR/looks/0001.mp4      sample 0001, at most `MAX_SIDE` pixels wide and high; .png for a still
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import av
import numpy as np

from preprocessing.errors import MediaError
from preprocessing.manifest import Sample
from preprocessing.pool import Pool

LOOKS_FOLDER: Final = "looks"
MAX_SIDE: Final = 256
"""Pixels: sharp on a phone's list, some 50 kB for four seconds."""
_QUALITY: Final = {"crf": "27", "preset": "veryfast"}
MATRIX_BT709: Final = 1

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def write_looks(prepared: Path, samples: Sequence[Sample], pool: Pool) -> None:
    """Write one for each of ``samples`` of the dataset in ``prepared``.

    One that can't be written is left out: a dataset is good without it.
    """
    folder = prepared / LOOKS_FOLDER
    folder.mkdir()
    tasks = [
        (sample.source, str(prepared / sample.frames), sample.frame_rate, str(folder / sample.id))
        for sample in samples
    ]
    for _ in pool.run(write_look, tasks):
        pass


def write_look(name: str, frames: str, frame_rate: Fraction, stem: str) -> None:
    """Of one sample; ``stem`` gets the suffix that fits. Holds one frame at a time.

    Raises `MediaError`; ``name`` is the clip's, for messages.
    """
    pixels = np.load(frames, mmap_mode="r")  # uint8 [F, H, W, 3]
    try:
        if len(pixels) == 1:
            _write_still(pixels[0], Path(f"{stem}.png"))
        else:
            _write_clip(pixels, frame_rate, Path(f"{stem}.mp4"))
    except av.FFmpegError as error:
        raise MediaError(f"{name} has no small clip to look at: {error}") from None


def look_size(width: int, height: int) -> tuple[int, int]:
    """Scaled into `MAX_SIDE`, in even numbers; never larger.

    >>> look_size(960, 544), look_size(128, 128)
    ((256, 144), (128, 128))
    """
    scale = min(1.0, MAX_SIDE / max(width, height))
    return max(2, int(width * scale) // 2 * 2), max(2, int(height * scale) // 2 * 2)


def _write_clip(pixels: Pixels, frame_rate: Fraction, out: Path) -> None:
    width, height = look_size(pixels.shape[2], pixels.shape[1])
    with av.open(str(out), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=frame_rate, options=_QUALITY)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.colorspace = stream.color_primaries = stream.color_trc = MATRIX_BT709
        stream.color_range = 1
        for index, picture in enumerate(pixels):
            frame = _scaled(picture, width, height, "yuv420p")
            frame.pts, frame.time_base = index, 1 / frame_rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_still(picture: Pixels, out: Path) -> None:
    width, height = look_size(picture.shape[1], picture.shape[0])
    with av.open(str(out), "w", format="image2pipe") as container:
        stream = container.add_stream("png")
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb24"
        container.mux(stream.encode(_scaled(picture, width, height, "rgb24")))
        container.mux(stream.encode())


def _scaled(picture: Pixels, width: int, height: int, format: str) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    if format == "rgb24":
        return frame.reformat(width=width, height=height, format=format)
    return frame.reformat(
        width=width, height=height, format=format, dst_colorspace="ITU709", dst_color_range="MPEG"
    )
