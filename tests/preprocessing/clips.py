"""Small clips made in code, where a real one has the wrong length or content."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
"""[H, W, 3]."""


def texture(seed: int, width: int = 96, height: int = 64) -> Frame:
    """Coarse coloured noise: two seeds are as unlike as two scenes."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return cells.repeat(8, axis=0).repeat(8, axis=1)


def write_clip(out: Path, frames: list[Frame], rate: Fraction | int = 25) -> Path:
    """H.264 without sound."""
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate), options={"crf": "18"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return out


def still_clip(out: Path, num_frames: int, rate: Fraction | int = 25) -> Path:
    return write_clip(out, [texture(1)] * num_frames, rate)


def clip_of_scenes(out: Path, seconds: list[float], rate: int = 25) -> Path:
    """One shot after another, each of another texture."""
    return write_clip(
        out,
        [texture(seed) for seed, length in enumerate(seconds) for _ in range(round(length * rate))],
        rate,
    )


def write_image(out: Path, width: int = 80, height: int = 120) -> Path:
    with av.open(str(out), "w", format="image2") as container:
        codec = "png" if out.suffix == ".png" else "mjpeg"
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height = width, height
        stream.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
        frame = av.VideoFrame.from_ndarray(texture(2, width, height), format="rgb24")
        container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return out
