"""Numbers, times and sizes as people read them, for the templates."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

UNITS: Final = ("B", "kB", "MB", "GB", "TB")
STANDINGS: Final = {
    "queued": "Queued",
    "running": "Running",
    "succeeded": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}
STAGES: Final = {
    "prepare": "Preparing",
    "download": "Downloading",
    "train": "Training",
    "generate": "Generating",
    "encode_latents": "Encoding clips",
    "encode_text": "Encoding captions",
    "preview": "Previews",
    "upload": "Storing",
}
SPELLED: Final = {"stg": "STG", "url": "URL", "num": "number of", "loras": "LoRAs", "lora": "LoRA"}
"""Words of field names that are not written as they stand."""


def size(num_bytes: float | None) -> str:
    """Decimal units.

    >>> size(1_234_567), size(999), size(None)
    ('1.2 MB', '999 B', '–')
    """
    if num_bytes is None:
        return "–"
    value = float(num_bytes)
    for unit in UNITS:
        if value < 1000 or unit == UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


def duration(seconds: float | None) -> str:
    """
    >>> duration(42), duration(754), duration(11_100), duration(0.31)
    ('42 s', '12 min 34 s', '3 h 05 min', '0.31 s')
    """
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds else "0 s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def usd(value: float | Decimal | None) -> str:
    """
    >>> usd(1.5), usd(0.006), usd(None)
    ('$1.50', '$0.006', '–')
    """
    if value is None:
        return "–"
    number = float(value)
    return f"${number:.2f}" if number == 0 or number >= 0.1 else f"${number:.3g}"


def number(value: float | None) -> str:
    """With thin spaces between thousands."""
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def moment(text: str | None) -> str:
    """An ISO 8601 time, shortly; the page's script turns it into the reader's own clock."""
    if text is None:
        return "–"
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def between(start: str | None, end: str | None) -> float | None:
    """Seconds from one ISO time to another; None where one is missing."""
    if start is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def words(name: str) -> str:
    """A field's name as a label.

    >>> words("num_inference_steps"), words("stg_scale"), words("training_data_url")
    ('Number of inference steps', 'STG scale', 'Training data URL')
    """
    text = " ".join(SPELLED.get(part, part) for part in name.split("_"))
    return text[:1].upper() + text[1:]


def exact(value: float) -> str:
    """A field's bound as one types it.

    >>> exact(9007199254740991), exact(0.25), exact(1e-08), exact(60.0)
    ('9007199254740991', '0.25', '1e-08', '60')
    """
    return str(int(value)) if value == int(value) else f"{value:g}"


def count(number: int, one: str, many: str = "") -> str:
    """
    >>> count(1, "sample"), count(0, "sample"), count(2, "file was", "files were")
    ('1 sample', '0 samples', '2 files were')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"


def percent(progress: dict[str, Any] | None) -> float | None:
    """How far a request's stage is, 0 to 100; None where nobody knows."""
    if not progress:
        return None
    done = progress.get("step", progress.get("done"))
    total = progress.get("of", progress.get("total"))
    if not isinstance(done, int | float) or not isinstance(total, int | float) or total <= 0:
        return None
    return round(min(100.0, 100 * done / total), 1)


FILTERS: Final = {
    "exact": exact,
    "count": count,
    "size": size,
    "duration": duration,
    "usd": usd,
    "number": number,
    "moment": moment,
    "words": words,
    "percent": percent,
}
