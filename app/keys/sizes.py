"""Sizes as people write them: ``50GB`` is 50 * 1000^3 bytes, ``50GiB`` is 50 * 1024^3."""

import re
from decimal import Decimal
from typing import Final

UNITS: Final = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
MAX_BYTES: Final = (1 << 63) - 1
"""What a BIGINT holds."""


def parse_size(text: str) -> int:
    """Bytes. Raises ValueError, with what can be written, for anything else."""
    match = re.fullmatch(r"([0-9]{1,19}(?:\.[0-9]{1,6})?)\s*([a-z]*)", text.strip().lower())
    factor = UNITS.get(match[2] or "b") if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size; write it as 500MB, 50GB or 50GiB")
    size = int(Decimal(match[1]) * factor)
    if size > MAX_BYTES:
        raise ValueError(f"{text!r} is more than can be counted")
    return size


def show_size(size_bytes: int) -> str:
    """Three or four digits and a decimal unit: ``48.1 GB``."""
    size, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        # What would be shown as 1000.0 of a unit is 1.0 of the next.
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
