"""The caption strip under a preview: step and prompt, readable, whatever the prompt contains.

FFmpeg's `drawtext` is not in PyAV's wheels, so Pillow draws. Its own font has little beyond ASCII;
a font of the system is taken where it covers more of the text.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

SYSTEM_FONTS: Final = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "Arial Unicode.ttf",
    "arial.ttf",
)
"""Looked up in the system's font folders; the more common scripts first."""

SPELLINGS: Final = str.maketrans(
    {"–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "×": "x", "ß": "ss"}
)
"""For what prompts often have, fonts lack, and Unicode does not decompose."""

MAX_PROMPT_LINES: Final = 3
"""More would outgrow the picture; the chapter's title has the whole prompt."""

MIN_TEXT_PX: Final = 13
TEXT_PER_WIDTH: Final = 1 / 36
"""Height of a line of text, in pixels and as a part of the picture's width."""

BACKGROUND: Final = (16, 17, 21)
TRACK: Final = (52, 55, 64)
ACCENT: Final = (255, 176, 59)
INK: Final = (238, 238, 240)

_NOT_A_CHARACTER: Final = "\uffff"
"""No font has it, so its picture is that of a missing glyph."""


@dataclass(frozen=True)
class Caption:
    """What the strip says of a sample."""

    prompt: str
    prompt_number: int
    """From 1."""
    num_prompts: int
    step: int
    num_steps: int

    @property
    def heading(self) -> str:
        heading = f"Step {self.step} of {self.num_steps}"
        if self.num_prompts > 1:
            heading += f"   |   Prompt {self.prompt_number} of {self.num_prompts}"
        return heading


def text_px(width: int) -> int:
    """Font size in pixels for a strip of this width."""
    return max(MIN_TEXT_PX, round(width * TEXT_PER_WIDTH))


def draw_strips(
    captions: Sequence[Caption], width: int, *, font_names: Sequence[str] = SYSTEM_FONTS
) -> list[NDArray[np.uint8]]:
    """One strip [h, width, 3] per caption: a bar of progress, the step, the prompt.

    h is even, and as large as the longest prompt wants: the picture above never jumps.
    """
    size = text_px(width)
    texts = []
    for caption in captions:
        prompt = printable(caption.prompt) or "(empty prompt)"
        font = best_font(prompt, size, font_names)
        lines = wrap(spell(prompt, font), font, width - 2 * _margin(size), MAX_PROMPT_LINES)
        texts.append((font, lines))
    num_lines = max(len(lines) for _, lines in texts)
    height = _bar(size) + 2 * _margin(size) + round((1.2 + num_lines) * _leading(size))
    height += height % 2
    return [
        _draw_strip(caption, font, lines, (width, height), size)
        for caption, (font, lines) in zip(captions, texts, strict=True)
    ]


def _draw_strip(
    caption: Caption, font: FreeTypeFont, lines: list[str], canvas: tuple[int, int], size: int
) -> NDArray[np.uint8]:
    image = Image.new("RGB", canvas, BACKGROUND)
    draw = ImageDraw.Draw(image)
    width, bar = canvas[0], _bar(size)
    done = round(width * min(1.0, caption.step / max(1, caption.num_steps)))
    draw.rectangle((0, 0, width, bar - 1), fill=TRACK)
    if done:
        draw.rectangle((0, 0, done - 1, bar - 1), fill=ACCENT)
    left, top = _margin(size), bar + _margin(size)
    draw.text((left, top), caption.heading, font=_own_font(size), fill=ACCENT)
    top += round(1.2 * _leading(size))
    for line in lines:
        draw.text((left, top), line, font=font, fill=INK)
        top += _leading(size)
    return np.asarray(image).copy()


def printable(text: str) -> str:
    """One line: white space collapsed; control, format and unassigned characters left out."""
    spaced = " ".join(text.split())
    return "".join(char for char in spaced if not unicodedata.category(char).startswith("C"))


def best_font(text: str, size: int, names: Sequence[str]) -> FreeTypeFont:
    """Of the named fonts and Pillow's own, the first with the fewest characters missing."""
    candidates = list(_fonts(tuple(names), size))
    return min(candidates, key=lambda font: sum(_missing(char, font) for char in set(text)))


def spell(text: str, font: FreeTypeFont) -> str:
    """``text`` in the characters the font has: an accent is dropped, what is left becomes "?"."""

    def spell_one(char: str) -> str:
        if not _missing(char, font):
            return char
        plain = unicodedata.normalize("NFKD", char.translate(SPELLINGS))
        plain = "".join(part for part in plain if not _missing(part, font))
        return plain or ("" if unicodedata.combining(char) else "?")

    return "".join(spell_one(char) for char in text)


def wrap(text: str, font: FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """Lines no wider than ``width`` pixels; where they don't suffice, the last ends in "..."."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < max_lines:
        line = _longest_prefix(rest, font, width)
        if len(line) < len(rest) and " " in line and rest[len(line)] != " ":
            line = line[: line.rindex(" ")]
        rest = rest[len(line) :].lstrip()
        lines.append(line.rstrip())
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "..."
    return lines


def _longest_prefix(text: str, font: FreeTypeFont, width: int) -> str:
    """As many characters as fit; at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if font.getlength(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low]


def _fonts(names: tuple[str, ...], size: int) -> Iterator[FreeTypeFont]:
    for name in names:
        try:
            yield ImageFont.truetype(name, size)
        except OSError:
            continue  # not on this machine
    yield _own_font(size)


def _own_font(size: int) -> FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, FreeTypeFont)  # the bitmap font serves Pillow without FreeType only
    return font


def _missing(char: str, font: FreeTypeFont) -> bool:
    if char.isspace():
        return False
    glyph, placeholder = font.getmask(char), font.getmask(_NOT_A_CHARACTER)
    return glyph.size == placeholder.size and bytes(glyph) == bytes(placeholder)


def _margin(size: int) -> int:
    return round(size * 0.6)


def _bar(size: int) -> int:
    return max(3, size // 4)


def _leading(size: int) -> int:
    return round(size * 1.35)
