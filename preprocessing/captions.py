"""Caption files: from bytes of unknown encoding to the text a clip is trained with."""

import codecs
import re
from dataclasses import dataclass

from preprocessing.errors import DatasetRuleError
from preprocessing.names import short

MAX_CAPTION_BYTES = 10_000
"""Bytes of one caption file: about 2500 tokens, far above the text encoder's 1024."""

_UTF16_BOMS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NEWLINES = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")
_UNPRINTABLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f]")
"""Terminal colour sequences and other control characters that are no white space."""


@dataclass(frozen=True)
class CaptionText:
    text: str
    warnings: tuple[str, ...] = ()


def check_size(name: str, size_bytes: int) -> None:
    """Refuse a caption file before it is read. Raises `DatasetRuleError`."""
    if size_bytes > MAX_CAPTION_BYTES:
        raise DatasetRuleError(
            f"The caption {short(name)} has {size_bytes} bytes; at most {MAX_CAPTION_BYTES} are "
            "allowed. Is it a caption?",
            ctx={"max_size": MAX_CAPTION_BYTES, "provided_size": size_bytes},
        )


def decode_caption(name: str, data: bytes) -> CaptionText:
    """Read one caption file: UTF-8, UTF-16 with a byte order mark, else Western (with a warning).

    White space is trimmed, line breaks become spaces, control characters are taken out (with a
    warning). An empty caption is allowed. Raises `DatasetRuleError`, naming the file, when it is
    larger than `MAX_CAPTION_BYTES` or holds zero characters, as binary files do.
    """
    check_size(name, len(data))
    text, warnings = _decode(name, data)
    if "\0" in text:
        raise DatasetRuleError(
            f"The caption {short(name)} is not a text file (it has zero characters). "
            "Save it as UTF-8."
        )
    line = _NEWLINES.sub(" ", text)
    clean = _UNPRINTABLE.sub("", line)
    if clean != line:
        warnings += (f"{short(name)}: control characters were taken out of the caption",)
    return CaptionText(clean.strip(), warnings)


def _decode(name: str, data: bytes) -> tuple[str, tuple[str, ...]]:
    if data.startswith(_UTF16_BOMS):
        try:
            return data.decode("utf-16"), ()
        except UnicodeDecodeError as error:
            raise DatasetRuleError(
                f"The caption {short(name)} begins like UTF-16 but is damaged. Save it as UTF-8."
            ) from error
    try:
        return data.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        warning = f"{short(name)}: not UTF-8, read as Western European (Windows-1252, Latin-1)"
        try:
            return data.decode("cp1252"), (warning,)
        except UnicodeDecodeError:
            return data.decode("latin-1"), (warning,)


def as_trained(caption: str, trigger_phrase: str) -> str:
    """The caption with the trigger phrase before it, one space between; either may be empty.

    >>> as_trained("a dog runs", "tronlog0"), as_trained("", "tronlog0"), as_trained("a dog", "")
    ('tronlog0 a dog runs', 'tronlog0', 'a dog')
    """
    return " ".join(part for part in (trigger_phrase.strip(), caption) if part)
