"""From a decoded frame to training pixels: crop, scale, convert, in FFmpeg's filter graph.

The order is what was measured fastest at the wanted quality (`reliability.md` 5.2): crop first,
then bicubic to full chroma, then to RGB with exact rounding (`yuv`). One-step conversion is dark by
1.4 levels and 12 dB worse.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph

from preprocessing.media.containers import MIN_SIDE, too_small
from preprocessing.media.geometry import AxisCrop, Cover, Orientation, cover, crop_axis
from preprocessing.media.hdr import to_sdr
from preprocessing.media.look import RANGE_FULL, Color, Look, look_at
from preprocessing.media.yuv import YuvToRgb, plane_of, rgb_matrix

_BICUBIC: Final = "flags=bicubic+accurate_rnd:param0=0:param1=0.5"
"""Keys' cubic with a = -0.5, the one of the reference; swscale's own default is -0.6."""

_EXACT: Final = "flags=accurate_rnd+full_chroma_int"

Pixels = npt.NDArray[np.uint8]


class FrameFitter:
    """Fits decoded frames of one clip to ``width`` x ``height``.

    A graph is built for every different look, so a clip may change its size or colours midway.
    """

    def __init__(
        self,
        width: int,
        height: int,
        pixel_aspect: Callable[[], Fraction | None],
        name: str,
        orientation: Orientation | None = None,
        cover: Cover | None = None,
    ) -> None:
        """``cover``: stretch frames to it, whatever their shape, instead of covering the size."""
        self._size = width, height
        self._pixel_aspect = pixel_aspect
        self._name = name
        self._orientation = orientation
        self._graphs: dict[Look, _FitGraph] = {}
        self._given_cover = cover
        self.cover: Cover | None = None
        """Of the first frame."""

    def fit(self, frame: av.VideoFrame) -> Pixels:
        """RGB [height, width, 3], possibly a view; to be copied before the next call.

        Raises `MediaError` where a frame is too small or crooked.
        """
        look = look_at(frame, self._pixel_aspect(), self._name, self._orientation)
        # Asked once: to list a frame's side data ties the frame into a reference cycle, and a cycle
        # holds its pixels until the garbage collector comes.
        self._orientation = look.orientation
        if look not in self._graphs:
            if min(look.width, look.height) < MIN_SIDE:
                raise too_small(self._name, look.width, look.height)
            self._graphs[look] = _FitGraph(look, *self._size, self._given_cover)
            self.cover = self.cover or self._graphs[look].cover
        return self._graphs[look].fit(frame)


class _FitGraph:
    """The filters for frames of one look."""

    def __init__(self, look: Look, width: int, height: int, given: Cover | None) -> None:
        self.cover = given or cover(*look.display_size, width, height)
        self._look = look
        self._graph = Graph()
        self._graph.threads = 1
        across, down = _stored_axes(look, self.cover, width, height)
        self._to_rgb = YuvToRgb(across.size, down.size)
        filters = [("buffer", _buffer(look)), *_filters(look, across, down)]
        nodes = [self._graph.add(name, args) for name, args in (*filters, ("buffersink", None))]
        self._graph.link_nodes(*nodes).configure()

    def fit(self, frame: av.VideoFrame) -> Pixels:
        _tag(frame, self._look.color)
        frame.pts = 0
        self._graph.push(frame)
        fitted = self._graph.vpull()
        return self._look.orientation.apply(self._rgb(fitted))

    def _rgb(self, fitted: av.VideoFrame) -> Pixels:
        if self._look.has_alpha:
            # Premultiplied, so leaving the alpha plane out is compositing on black.
            return np.stack([plane_of(fitted, plane) for plane in (2, 0, 1)], axis=-1)
        if self._look.color.hdr:
            return to_sdr(np.asarray(fitted.to_ndarray(), np.uint16), self._look.color)
        if self._look.is_rgb:
            return plane_of(fitted, 0, 3).reshape(fitted.height, fitted.width, 3)
        # The filters' own word for the range: for gray they go from full to limited.
        full_range = fitted.color_range == RANGE_FULL
        matrix = rgb_matrix(self._look.color.matrix, full_range=full_range)
        return self._to_rgb.convert([plane_of(fitted, plane) for plane in range(3)], matrix)


def _filters(look: Look, across: AxisCrop, down: AxisCrop) -> list[tuple[str, str]]:
    """Names and arguments of the filters from stored frames to RGB of the final size."""
    crop = ("crop", f"{across.length}:{down.length}:{across.start}:{down.start}:exact=1")
    scale = ("scale", f"{across.scaled}:{down.scaled}:{_BICUBIC}")
    trim = ("crop", f"{across.size}:{down.size}:{across.trim}:{down.trim}:exact=1")
    convert = ("scale", _EXACT)
    if look.has_alpha:
        # In RGB, so that transparent pixels are black before they are mixed with others.
        black = [convert, ("format", "gbrap"), ("premultiply", "inplace=1")]
        return [crop, *black, scale, trim, ("format", "gbrap")]
    depth = "16le" if look.color.hdr else ""
    packed = "rgb48le" if look.color.hdr else "rgb24"
    if look.is_rgb:
        return [crop, convert, ("format", f"gbrp{depth}"), scale, trim, ("format", packed)]
    full_chroma = [crop, scale, ("format", f"yuv444p{depth}"), trim]
    return [*full_chroma, convert, ("format", packed)] if look.color.hdr else full_chroma


def _stored_axes(look: Look, fit: Cover, width: int, height: int) -> tuple[AxisCrop, AxisCrop]:
    """The crop along a stored frame's x and y; the plan is made for the upright frame."""
    turn = look.orientation
    left = fit.width - width - fit.left if turn.mirror_x else fit.left
    top = fit.height - height - fit.top if turn.mirror_y else fit.top
    across, down = (fit.width, left, width), (fit.height, top, height)
    if turn.transposed:
        across, down = down, across
    step = look.chroma_step
    return crop_axis(look.width, *across, step), crop_axis(look.height, *down, step)


def _buffer(look: Look) -> str:
    return (
        f"video_size={look.width}x{look.height}:pix_fmt={look.pixel_format}:time_base=1/1"
        f":pixel_aspect=1/1:colorspace={look.color.matrix}:range={look.color.range_code}"
    )


def _tag(frame: av.VideoFrame, color: Color) -> None:
    """Write what was decided into the frame: filters read it there."""
    frame.colorspace = color.matrix
    frame.color_range = color.range_code
