"""Caption files: encodings, limits, and what the clip is trained with (Z45)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.captions import MAX_CAPTION_BYTES, as_trained, decode_caption
from preprocessing.errors import DatasetRuleError

READ = {
    # id: (bytes, text, a word of the warning or None)
    "plain": (b"a red car", "a red car", None),
    "empty": (b"", "", None),
    "only white space": (b" \r\n\t ", "", None),
    "trimmed": (b"  a red car \n", "a red car", None),
    "line breaks": (b"a red car\r\ndrives\n\n  home", "a red car drives home", None),
    "Unicode line breaks": ("one\u2028two\x85three".encode(), "one two three", None),
    "UTF-8": ("ein grünes Auto, 猫".encode(), "ein grünes Auto, 猫", None),
    "UTF-8 with BOM": ("ein grünes Auto".encode("utf-8-sig"), "ein grünes Auto", None),
    "UTF-16 little endian": (b"\xff\xfe" + "猫 runs".encode("utf-16-le"), "猫 runs", None),
    "UTF-16 big endian": (b"\xfe\xff" + "猫 runs".encode("utf-16-be"), "猫 runs", None),
    "Latin-1": ("ein grünes Auto".encode("latin-1"), "ein grünes Auto", "not UTF-8"),
    "Windows quotes": ("a “big” car".encode("cp1252"), "a “big” car", "not UTF-8"),
    "no code page has it": (b"gr\xfcn \x81", "grün", "not UTF-8"),
    "terminal colours": (b"a \x1b[31mred\x1b[0m car\x07", "a red car", "control characters"),
    "as large as allowed": (b"a" * MAX_CAPTION_BYTES, "a" * MAX_CAPTION_BYTES, None),
}


@pytest.mark.parametrize("case", READ)
def test_read(case: str) -> None:
    data, text, warning = READ[case]
    caption = decode_caption("day/clip.txt", data)
    assert caption.text == text
    if warning is None:
        assert caption.warnings == ()
    else:
        assert warning in caption.warnings[0]
        assert "day/clip.txt" in caption.warnings[0]


REFUSED = {
    "one byte too large": (b"a" * (MAX_CAPTION_BYTES + 1), "10001 bytes"),
    "zero characters": (b"a\0b", "zero characters"),
    "UTF-16 without BOM": ("a car".encode("utf-16-le"), "zero characters"),
    "half of UTF-16": (b"\xff\xfea\0b", "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, words = REFUSED[case]
    with pytest.raises(DatasetRuleError) as caught:
        decode_caption("day/\x1b[2Jclip.txt", data)
    assert words in caught.value.message
    assert "day/\\u001b[2Jclip.txt" in caught.value.message


@given(st.binary(max_size=300))
def test_any_bytes_give_one_printable_line_or_a_refusal(data: bytes) -> None:
    try:
        text = decode_caption("clip.txt", data).text
    except DatasetRuleError:
        return
    assert text == text.strip()
    assert len(text.splitlines()) <= 1
    assert not any(ord(char) < 32 and char != "\t" for char in text)


TRAINED = {
    "both": ("a dog", "tronlog0", "tronlog0 a dog"),
    "trigger alone": ("", "tronlog0", "tronlog0"),
    "caption alone": ("a dog", "", "a dog"),
    "neither": ("", "", ""),
    "already in the caption, prepended all the same": ("tok dog", "tok", "tok tok dog"),
    "one space between": ("a dog", "tok ", "tok a dog"),
}


@pytest.mark.parametrize("case", TRAINED)
def test_as_trained(case: str) -> None:
    caption, trigger, expected = TRAINED[case]
    assert as_trained(caption, trigger) == expected
