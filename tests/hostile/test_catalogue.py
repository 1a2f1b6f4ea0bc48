"""Every number of the catalogue is a test of this folder, or listed with the reason why not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.hostile.catalogue import NUMBERS, not_staged, number_of, numbers_in

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def test_ids() -> list[str]:
    """As pytest finds them: whatever part of the tests runs now."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", HERE],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_there_are_205() -> None:
    assert len(NUMBERS) == 205


def test_every_number_is_accounted_for(test_ids: list[str]) -> None:
    tested, listed = numbers_in(test_ids), not_staged()
    assert tested <= NUMBERS
    assert listed <= NUMBERS
    assert not listed & tested, "listed as not staged, but it is"
    missing = NUMBERS - tested - listed
    assert not missing, sorted(missing, key=lambda number: (number[0], int(number[1:])))


@pytest.mark.parametrize(
    ("test_id", "number"),
    [
        ("tests/hostile/test_zips.py::test_refused[Z17-long-component]", "Z17"),
        ("tests/hostile/test_tenancy.py::TestSignedUrls::test_T7_past_its_time", "T7"),
        ("tests/hostile/test_api.py::test_field[x]", None),
        ("tests/hostile/test_api.py::test_A34_one_line_per_event", "A34"),
    ],
    ids=["row", "method", "neither", "function"],
)
def test_how_a_number_is_read(test_id: str, number: str | None) -> None:
    assert number_of(test_id) == number
