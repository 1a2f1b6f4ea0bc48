"""How large a generated video is: fal's presets, exact sizes, shapes, or in its source's shape."""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final, Literal

from preprocessing.rules import LATENT_STRIDE_PIXELS

MIN_SIDE: Final = 128
"""Pixels: a source at a quarter of that is one latent cell."""
MAX_SIDE: Final = 2560
MAX_PIXELS: Final = 2560 * 1080
"""Of one frame. The largest named size, 1080p at 21:9, has 2520x1080."""

Preset = Literal[
    "square_hd",
    "square",
    "portrait_4_3",
    "portrait_16_9",
    "landscape_4_3",
    "landscape_16_9",
    "auto",
]
Shape = Literal["21:9", "16:9", "4:3", "1:1", "3:4", "9:16", "9:21"]
Lines = Literal["480p", "720p", "1080p"]


@dataclass(frozen=True)
class Canvas:
    """Pixels of the generated frames; even numbers, as video codecs have them."""

    width: int
    height: int

    def megapixels(self, num_frames: int) -> int:
        """Of a video of that many frames, rounded up: what fal bills.

        >>> Canvas(1280, 720).megapixels(121)
        112
        """
        return ceil(self.width * self.height * num_frames / 1_000_000)


PRESETS: Final[dict[str, Canvas]] = {
    "square_hd": Canvas(1024, 1024),
    "square": Canvas(512, 512),
    "portrait_4_3": Canvas(768, 1024),
    "portrait_16_9": Canvas(576, 1024),
    "landscape_4_3": Canvas(1024, 768),
    "landscape_16_9": Canvas(1024, 576),
}
"""fal's general table (`fal-protocol.md` 3.4). ``auto`` has no size before its source is known."""

TYPICAL: Final = PRESETS["landscape_16_9"]
"""The default; ``auto`` has about its area."""


def of_shape(shape: Shape, lines: Lines) -> Canvas:
    """The size whose shorter side has that many lines.

    >>> of_shape("16:9", "720p"), of_shape("9:16", "480p"), of_shape("21:9", "1080p")
    (Canvas(width=1280, height=720), Canvas(width=480, height=854), Canvas(width=2520, height=1080))
    """
    short = int(lines.removesuffix("p"))
    across, down = (int(part) for part in shape.split(":"))
    long = 2 * round(short * max(across, down) / min(across, down) / 2)
    return Canvas(long, short) if across >= down else Canvas(short, long)


def like(width: int, height: int) -> Canvas:
    """A size in the shape of ``width`` x ``height``, with about the area of `TYPICAL`, on the
    model's grid. A shape that is too long or too tall is cut to what a canvas may be.

    >>> like(1280, 720), like(176, 144), like(100, 4000)
    (Canvas(width=1024, height=576), Canvas(width=864, height=704), Canvas(width=224, height=2560))
    """
    area = TYPICAL.width * TYPICAL.height
    narrowest = area / MAX_SIDE
    across = min(max(sqrt(area * width / height), narrowest), MAX_SIDE)
    return Canvas(_on_grid(across), _on_grid(area / across))


def _on_grid(pixels: float) -> int:
    return LATENT_STRIDE_PIXELS * round(pixels / LATENT_STRIDE_PIXELS)
