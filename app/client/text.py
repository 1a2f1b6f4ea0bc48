"""Words for people, out of what the service says."""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

import httpx

MAX_SHOWN_CHARACTERS: Final = 300
"""Of an answer that is no JSON, such as a proxy's error page."""


def clean(text: str) -> str:
    """``text`` without what moves a terminal's cursor or recolours it; it may come from a file
    name or a caption. Line breaks become spaces."""
    return "".join(
        " " if char in "\t\n\r" else char
        for char in text
        if char in "\t\n\r" or unicodedata.category(char) not in ("Cc", "Cf", "Cs")
    )


def problem_lines(body: Any) -> list[str]:
    """An error body in lines: fal's ``detail`` list gives one for each wrong field."""
    detail = body.get("detail") if isinstance(body, Mapping) else body
    if isinstance(detail, list):
        return [_detail_line(entry) for entry in detail]
    if isinstance(body, Mapping) and body.get("status") == "NOT_FOUND":
        return ["There is no such request (or it belongs to another key)."]
    if isinstance(body, Mapping) and body.get("status") == "ALREADY_COMPLETED":
        return ["The request has already completed."]
    return [clean(detail if isinstance(detail, str) else json.dumps(body))]


def problem_of(response: httpx.Response) -> list[str]:
    """The same for an answer, which may be no JSON at all."""
    try:
        return problem_lines(response.json())
    except ValueError:
        text = clean(response.text[:MAX_SHOWN_CHARACTERS]).strip()
        return [f"HTTP {response.status_code}: {text or response.reason_phrase}"]


def _detail_line(entry: Any) -> str:
    if not isinstance(entry, Mapping):
        return clean(str(entry))
    loc = [str(part) for part in entry.get("loc", ())]
    where = ".".join(loc[1:] if loc[:1] == ["body"] else loc)
    message = str(entry.get("msg", "is wrong"))
    given = f" (given: {json.dumps(entry['input'])})" if "input" in entry else ""
    return clean(f"{where}: {message}{given}" if where else message)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``42 s``, ``12 min``, ``3 h 05 min``.

    >>> [duration(s) for s in (0, 42.4, 720, 11_100)]
    ['0 s', '42 s', '12 min', '3 h 05 min']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """Bytes as people say them.

    >>> [size(n) for n in (0, 999, 1500, 2_500_000, 20e9)]
    ['0 B', '999 B', '1.5 kB', '2.5 MB', '20.0 GB']
    """
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 1000 or unit == "GB":
            break
    return f"{num_bytes:.1f} {unit}"
