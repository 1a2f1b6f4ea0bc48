"""Sound made longer at its pitch, or brought to another sample rate, by FFmpeg's filters."""

import math
from typing import Final

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph

_SLOWEST: Final = 0.5
"""Lowest tempo of one atempo filter; lower ones take several."""

_CHUNK: Final = 16_384
"""Samples pushed at a time."""

Samples = npt.NDArray[np.float32]


def stretched(samples: Samples, sample_rate: int, factor: float) -> Samples:
    """Sound [2, S] to [2, about S * factor], ``factor`` >= 1, with its pitch kept."""
    steps = max(1, math.ceil(math.log(factor) / -math.log(_SLOWEST)))
    tempo = factor ** (-1 / steps)
    return _filtered(samples, sample_rate, [("atempo", f"{tempo:.9f}")] * steps)


def resampled(samples: Samples, sample_rate: int, to_rate: int) -> Samples:
    """Sound [2, S] to [2, about S * to_rate / sample_rate]."""
    return _filtered(samples, sample_rate, [("aresample", str(to_rate))])


def _filtered(samples: Samples, sample_rate: int, filters: list[tuple[str, str]]) -> Samples:
    graph = Graph()
    graph.threads = 1
    source = graph.add_abuffer(sample_rate=sample_rate, format="fltp", layout="stereo")
    middle = [graph.add(name, args) for name, args in filters]
    last = graph.add("aformat", "sample_fmts=fltp:channel_layouts=stereo")
    graph.link_nodes(source, *middle, last, graph.add("abuffersink")).configure()
    parts: list[Samples] = []
    for start in range(0, samples.shape[1], _CHUNK):
        chunk = np.ascontiguousarray(samples[:, start : start + _CHUNK])
        frame = av.AudioFrame.from_ndarray(chunk, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = sample_rate, start
        graph.push(frame)
        parts += _pulled(graph)
    graph.push(None)
    parts += _pulled(graph)
    return np.concatenate(parts, axis=1) if parts else samples


def _pulled(graph: Graph) -> list[Samples]:
    parts: list[Samples] = []
    while True:
        try:
            parts.append(np.asarray(graph.pull().to_ndarray(), np.float32))
        except (av.error.BlockingIOError, av.error.EOFError):
            return parts
