"""The reference's resize in plain numpy, and noise to compare with it."""

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

from preprocessing.media.geometry import cover
from preprocessing.media.graph import FrameFitter

Floats = NDArray[np.float64]


def cubic(x: Floats) -> Floats:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def resize_matrix(source: int, size: int) -> Floats:
    """Antialiased bicubic as a matrix [size, source]; weights outside the picture are left out."""
    ratio = source / size
    support = max(ratio, 1.0)
    centres = (np.arange(size) + 0.5) * ratio - 0.5
    weights = cubic((np.arange(source)[None] - centres[:, None]) / support)
    normalised: Floats = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def reference(picture: NDArray[np.uint8], width: int, height: int) -> Floats:
    """The whole frame resized to cover in float64, then cropped: [height, width, 3]."""
    source_height, source_width = picture.shape[:2]
    fit = cover(Fraction(source_width), Fraction(source_height), width, height)
    rows = resize_matrix(source_height, fit.height)
    columns = resize_matrix(source_width, fit.width)
    resized: Floats = np.einsum(
        "yh,hwc,xw->yxc", rows, picture.astype(np.float64), columns, optimize=True
    )
    return resized[fit.top : fit.top + height, fit.left : fit.left + width].clip(0, 255)


def through_graph(frame: av.VideoFrame, width: int, height: int) -> Floats:
    return FrameFitter(width, height, lambda: None, "clip").fit(frame).astype(np.float64)


def psnr(a: Floats, b: Floats) -> float:
    return float(10 * np.log10(255**2 / np.mean((a - b) ** 2)))


def noisy_frame(width: int, height: int) -> av.VideoFrame:
    """Smooth colours under strong noise in the luma, 4:2:0, BT.709 limited."""
    y, x = np.mgrid[0:height, 0:width]
    smooth = [128 + 80 * np.sin(x / 37 + y / 91), 128 + 80 * np.sin(x / 53 - y / 41)]
    colors = np.stack([*smooth, 128 + 80 * np.cos(y / 67)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 1))
    rgb = np.clip(colors + noise, 0, 255).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
        format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
    )
    frame.colorspace, frame.color_range = 1, 1
    return frame


def full_chroma_rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """The frame at its own size in RGB, by swscale's best (and slowest) means."""
    graph = Graph()
    size = f"video_size={frame.width}x{frame.height}"
    graph.link_nodes(
        graph.add("buffer", f"{size}:pix_fmt=yuv420p:time_base=1/1:colorspace=1:range=1"),
        graph.add("scale", "flags=lanczos+accurate_rnd+full_chroma_int+full_chroma_inp"),
        graph.add("format", "rgb24"),
        graph.add("buffersink"),
    ).configure()
    frame.pts = 0
    graph.push(frame)
    return np.asarray(graph.vpull().to_ndarray(), np.uint8)
