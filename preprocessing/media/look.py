"""What a decoded frame says about itself, and what is assumed where it says nothing.

Decided on decoded frames, not on headers: headers lie (`reliability.md` 0.13, M16, M45).
"""

import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import av
from av.sidedata.sidedata import Type as SideDataType

from preprocessing.errors import MediaError
from preprocessing.media.geometry import Orientation
from preprocessing.names import short

# ITU-T H.273 code points, as FFmpeg numbers them.
MATRIX_RGB: Final = 0
MATRIX_BT709: Final = 1
MATRIX_BT601: Final = 6
MATRIX_BT2020: Final = 9
PRIMARIES_BT2020: Final = 9
TRANSFER_PQ: Final = 16
TRANSFER_HLG: Final = 18

RANGE_LIMITED: Final = 1
RANGE_FULL: Final = 2

_MATRIX_NAMES: Final = {
    MATRIX_RGB: "rgb",
    MATRIX_BT709: "bt709",
    4: "fcc",
    5: "bt601",
    MATRIX_BT601: "bt601",
    7: "smpte240m",
    8: "ycgco",
    MATRIX_BT2020: "bt2020",
    10: "bt2020",
}
_CONVERTIBLE: Final = frozenset({MATRIX_BT709, 4, 5, MATRIX_BT601, 7, MATRIX_BT2020})
"""Matrices that swscale knows."""

_HD_WIDTH, _HD_HEIGHT = 1280, 720
"""From either on, an untagged picture is BT.709: what every camera and player does."""

_UPRIGHT: Final = (1, 0, 0, 0, 1, 0, 0, 0, 1)

_MAX_PIXEL_STRETCH: Final = 4
"""Sample aspect ratios beyond 1:4 and 4:1 are nonsense; real ones stay within 1:2 and 2:1."""


@dataclass(frozen=True)
class Color:
    """How stored values become RGB."""

    matrix: int
    full_range: bool
    transfer: int
    assumed: str
    """What was not tagged: "", "assumed matrix" and so on, for the report."""

    @property
    def hdr(self) -> bool:
        return self.transfer in (TRANSFER_PQ, TRANSFER_HLG)

    @property
    def range_code(self) -> int:
        return RANGE_FULL if self.full_range else RANGE_LIMITED

    def __str__(self) -> str:
        range_ = "full range" if self.full_range else "limited range"
        curve = {TRANSFER_PQ: ", PQ", TRANSFER_HLG: ", HLG"}.get(self.transfer, "")
        note = f" (untagged {self.assumed}: assumed)" if self.assumed else ""
        return f"{_MATRIX_NAMES.get(self.matrix, str(self.matrix))}, {range_}{curve}{note}"


@dataclass(frozen=True)
class Look:
    """Everything that decides how a frame is fitted. Equal looks share one filter graph."""

    width: int
    height: int
    pixel_format: str
    color: Color
    orientation: Orientation
    pixel_aspect: Fraction
    """Width of a pixel / its height, as stored (before turning)."""

    @property
    def display_size(self) -> tuple[Fraction, Fraction]:
        """Width and height upright and with square pixels; the height is that of the lines."""
        width, height = self.width * self.pixel_aspect, Fraction(self.height)
        return (height, width) if self.orientation.transposed else (width, height)

    @property
    def has_alpha(self) -> bool:
        format_ = av.VideoFormat(self.pixel_format)
        return format_.has_palette or any(part.is_alpha for part in format_.components)

    @property
    def is_rgb(self) -> bool:
        format_ = av.VideoFormat(self.pixel_format)
        return format_.is_rgb or format_.has_palette

    @property
    def chroma_step(self) -> int:
        """Pixels between chroma samples, the coarser way: cuts keep to this grid."""
        format_ = av.VideoFormat(self.pixel_format)
        if format_.has_palette:
            return 1
        return max(16 // format_.chroma_width(16), 16 // format_.chroma_height(16))


def look_at(
    frame: av.VideoFrame,
    pixel_aspect: Fraction | None,
    name: str,
    orientation: Orientation | None = None,
) -> Look:
    """Read a decoded frame's properties. ``orientation`` is set where the file itself tells it.

    Raises `MediaError` for a crooked rotation.
    """
    return Look(
        frame.width,
        frame.height,
        frame.format.name,
        color_of(frame),
        orientation or _orientation(frame, name),
        _sane_aspect(pixel_aspect),
    )


def _sane_aspect(aspect: Fraction | None) -> Fraction:
    if not aspect or not 1 / Fraction(_MAX_PIXEL_STRETCH) <= aspect <= _MAX_PIXEL_STRETCH:
        return Fraction(1)
    return Fraction(aspect)


def _orientation(frame: av.VideoFrame, name: str) -> Orientation:
    try:
        side_data: Any = frame.side_data
    except ValueError:
        # PyAV can't list a frame's side data when it meets a kind it does not know (EXIF, stereo
        # views). The angle it can still tell; a mirror it can't.
        orientation = Orientation.of_degrees(-frame.rotation)
    else:
        matrix = side_data.get(SideDataType.DISPLAYMATRIX)
        numbers = struct.unpack("=9i", bytes(matrix)) if matrix is not None else _UPRIGHT
        orientation = Orientation.of_matrix(numbers)
    if orientation is None:
        raise MediaError(
            f"{short(name)} asks to be shown rotated by {frame.rotation} degrees. Only quarter "
            "turns are supported: export it upright.",
            reason="rotated",
        )
    return orientation


def color_of(frame: av.VideoFrame) -> Color:
    """A frame's tags, with what is assumed for the missing ones."""
    format_ = frame.format
    if format_.is_rgb or format_.has_palette:
        return Color(MATRIX_RGB, True, frame.color_trc, "")
    assumed = []
    if format_.name.startswith(("yuvj", "gray", "ya")):
        # Full range by definition of the format; swscale reads gray so whatever its tag says.
        full = True
    elif frame.color_range in (RANGE_LIMITED, RANGE_FULL):
        full = frame.color_range == RANGE_FULL
    else:
        full = False
        assumed.append("range")
    matrix = frame.colorspace
    if matrix not in _CONVERTIBLE:
        assumed.append("matrix")
        hd = frame.width >= _HD_WIDTH or frame.height >= _HD_HEIGHT
        if frame.color_primaries == PRIMARIES_BT2020:
            matrix = MATRIX_BT2020
        else:
            matrix = MATRIX_BT709 if hd else MATRIX_BT601
    return Color(matrix, full, frame.color_trc, " and ".join(assumed))
