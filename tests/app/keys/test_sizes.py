"""Sizes as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.keys.sizes import MAX_BYTES, parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("12b", 12),
        ("50GB", 50 * 10**9),
        ("50 gb", 50 * 10**9),
        ("50GiB", 50 * 2**30),
        ("1.5kB", 1500),
        ("0.000001TB", 10**6),
        ("1.5KiB", 1536),
        (str(MAX_BYTES), MAX_BYTES),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1", "1e9", "50XB", "50 GB more", "1,5GB", ".5GB", "٥GB", "9223372036855TB"]
)
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"size|counted"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (48_123_000_000, "48.1 GB"),
        (MAX_BYTES, "9223372.0 TB"),
    ],
)
def test_shown(size: int, text: str) -> None:
    assert show_size(size) == text


@given(st.integers(0, 10**15))
def test_what_is_shown_reads_back_nearly(size: int) -> None:
    assert abs(parse_size(show_size(size)) - size) <= 0.05 * size
