"""HDR pictures (BT.2020 with PQ or HLG) brought to what SDR training pixels mean.

The steps of ITU-R BT.2408 and BT.2446 in their plainest form: decode to light, BT.709 primaries,
roll the highlights off, encode for an SDR screen. Reference white (203 cd/m²) becomes 80 % of the
SDR signal's light, so faces and paper look as in SDR footage and highlights keep some room.
"""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from preprocessing.media.look import TRANSFER_PQ, Color

REFERENCE_WHITE_NITS: Final = 203.0
"""Diffuse white in HDR (BT.2408, section 2.1)."""

HLG_PEAK_NITS: Final = 1000.0
HLG_SYSTEM_GAMMA: Final = 1.2
"""Of the nominal HLG screen (BT.2100, table 5)."""

KNEE: Final = 0.8
"""Share of SDR's light that reference white gets; above, light is compressed into the rest."""

_SDR_GAMMA: Final = 2.4
"""Of an SDR screen (BT.1886)."""

_BT2020_TO_BT709: Final = np.array(
    [
        [1.660491, -0.587641, -0.072850],
        [-0.124550, 1.132900, -0.008349],
        [-0.018151, -0.100579, 1.118730],
    ],
    dtype=np.float32,
)
"""Linear light (BT.2087, annex 2's inverse)."""

_BT2020_LUMA: Final = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)

Pixels16 = npt.NDArray[np.uint16]
Light = npt.NDArray[np.float32]


def to_sdr(rgb: Pixels16, color: Color) -> npt.NDArray[np.uint8]:
    """Nonlinear BT.2020 R'G'B' [H, W, 3], full range of 16 bits, to BT.709 uint8 [H, W, 3]."""
    if color.transfer == TRANSFER_PQ:
        light = _pq_light()[rgb]
    else:
        scene = _hlg_scene_light()[rgb]
        luma = np.maximum(scene @ _BT2020_LUMA, np.float32(1e-6))
        light = scene * luma[..., None] ** np.float32(HLG_SYSTEM_GAMMA - 1)
        light *= np.float32(HLG_PEAK_NITS / REFERENCE_WHITE_NITS)
    light = np.maximum(light @ _BT2020_TO_BT709.T, 0) * np.float32(KNEE)
    # One factor for all three channels keeps the hue; the brightest channel decides it.
    peak = np.maximum(light.max(axis=-1, keepdims=True), np.float32(1e-6))
    light *= _rolled_off(peak) / peak
    encoded = light ** np.float32(1 / _SDR_GAMMA)
    sdr: npt.NDArray[np.uint8] = np.clip(np.rint(encoded * 255), 0, 255).astype(np.uint8)
    return sdr


def _rolled_off(light: Light) -> Light:
    """Identity below the knee, then a curve that meets it smoothly and approaches 1."""
    room = np.float32(1 - KNEE)
    above = np.maximum(light - np.float32(KNEE), 0) / room
    rolled: Light = np.minimum(light, np.float32(KNEE)) + room * above / (1 + above)
    return rolled


@cache
def _pq_light() -> Light:
    """Light by 16-bit code, reference white = 1 (SMPTE ST 2084)."""
    m1, m2 = 2610 / 16384, 2523 / 4096 * 128
    c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
    code = (np.arange(65536) / 65535) ** (1 / m2)
    nits = 10000 * (np.maximum(code - c1, 0) / (c2 - c3 * code)) ** (1 / m1)
    return (nits / REFERENCE_WHITE_NITS).astype(np.float32)


@cache
def _hlg_scene_light() -> Light:
    """Scene light in [0, 1] by 16-bit code (BT.2100, table 5)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    code = np.arange(65536) / 65535
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(np.float32)
