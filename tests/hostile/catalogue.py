"""The numbers of `spec/reliability.md` section 4, and where a test names one of them."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

GROUPS: Final = {
    "S": ("URLs that lead inside", 40),
    "Z": ("zips", 46),
    "M": ("media", 52),
    "L": ("LoRA files", 13),
    "A": ("API, JSON, HTTP", 34),
    "T": ("tenancy, storage, infrastructure", 20),
}
"""Letter -> what the group is about, and how many numbers it has."""

NUMBERS: Final = frozenset(
    f"{letter}{number}" for letter, (_, last) in GROUPS.items() for number in range(1, last + 1)
)

_IN_ID = re.compile(r"(?:\[|_)([SZMLAT][1-9]\d?)[-_]")
_ROW = re.compile(r"^\| ([SZMLAT]\d+) \|", re.MULTILINE)
README: Final = Path(__file__).with_name("README.md")


def number_of(test_id: str) -> str | None:
    """``Z17`` of ``...::test_refused[Z17-long-component]`` or ``...::test_Z17_long_component``."""
    found = _IN_ID.search(test_id.rpartition("::")[2])
    return found[1] if found else None


def as_id(case: str) -> str:
    """``Z1-parent`` of "Z1 parent"."""
    number, _, rest = case.partition(" ")
    return f"{number}-{re.sub('[^a-z0-9]+', '-', rest.lower()).strip('-')}"


def numbers_in(test_ids: Iterable[str]) -> set[str]:
    return {number for test_id in test_ids if (number := number_of(test_id)) is not None}


def not_staged() -> set[str]:
    """The numbers that README.md lists with the reason why they have no test."""
    _, _, listed = README.read_text().partition("## Not staged")
    return set(_ROW.findall(listed))
