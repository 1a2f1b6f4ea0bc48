"""Interlaced frames made progressive, one for one."""

from collections import deque
from collections.abc import Iterator

import av
from av.filter import Graph

_BWDIF = "mode=send_frame:deint=interlaced"
"""One frame out for each in, and only flagged ones touched: a telecined clip mixes both."""


def deinterlaced(frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    """Pass frames through; from the first that is flagged as interlaced on, through ``bwdif``.

    Every frame comes out once, in order, with its own time and properties. bwdif looks at the
    frames before and after, so up to three are held.
    """
    bob: _Deinterlacer | None = None
    for frame in frames:
        if bob is not None and not bob.takes(frame):
            yield from bob.finish()
            bob = None
        if bob is None and frame.interlaced_frame:
            bob = _Deinterlacer(frame)
        if bob is None:
            yield frame
        else:
            yield from bob.feed(frame)
    if bob is not None:
        yield from bob.finish()


class _Deinterlacer:
    """bwdif for frames of one size and format."""

    def __init__(self, frame: av.VideoFrame) -> None:
        self._shape = _shape(frame)
        self._times: deque[int | None] = deque()
        self._count = 0
        self._graph = Graph()
        self._graph.threads = 1
        nodes = (
            self._graph.add(
                "buffer",
                f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
                f":time_base=1/25:colorspace={frame.colorspace}:range={frame.color_range}",
            ),
            self._graph.add("bwdif", _BWDIF),
            self._graph.add("format", frame.format.name),
            self._graph.add("buffersink"),
        )
        self._graph.link_nodes(*nodes).configure()

    def takes(self, frame: av.VideoFrame) -> bool:
        return self._shape == _shape(frame)

    def feed(self, frame: av.VideoFrame) -> Iterator[av.VideoFrame]:
        # bwdif wants times and outputs halves of them: it gets numbers, and frames their own back.
        self._times.append(frame.pts)
        frame.pts = self._count
        self._count += 1
        self._graph.push(frame)
        yield from self._ready()

    def finish(self) -> Iterator[av.VideoFrame]:
        self._graph.push(None)
        yield from self._ready()

    def _ready(self) -> Iterator[av.VideoFrame]:
        while True:
            try:
                frame = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            frame.pts = self._times.popleft()
            yield frame


def _shape(frame: av.VideoFrame) -> tuple[object, ...]:
    return (
        frame.width,
        frame.height,
        frame.format.name,
        frame.colorspace,
        frame.color_range,
    )
