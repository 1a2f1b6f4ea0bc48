"""The targets under hypothesis: honest inputs with some bytes changed, and plain noise."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import SEED_URLS, TARGETS

EXAMPLES = 150


@pytest.mark.parametrize("name", TARGETS)
def test_seeds(name: str) -> None:
    target, seeds = TARGETS[name]
    for seed in seeds():
        target(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_seeds(name: str) -> None:
    target, seeds = TARGETS[name]
    honest = seeds()

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(data=st.data())
    def run(data: st.DataObject) -> None:
        changed = bytearray(data.draw(st.sampled_from(honest)))
        for _ in range(data.draw(st.integers(1, 5))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        cut = data.draw(st.integers(0, 30))
        target(bytes(changed[: len(changed) - cut]))

    run()


@pytest.mark.parametrize("name", TARGETS)
def test_noise(name: str) -> None:
    target, _ = TARGETS[name]
    settings(max_examples=EXAMPLES, deadline=None)(given(st.binary(max_size=300))(target))()


ADDRESSES = ["127.0.0.1", "[::1]", "0x7f", "2130706433", "localhost", "example.com"]
MARKS = ["http://", "https:", "//", "@", "\\", ":", "80", ".", "%00", "①", "。", "#", "?", "/", "ⓛ"]
PARTS = st.sampled_from([*ADDRESSES, *MARKS])


@settings(max_examples=2 * EXAMPLES, deadline=None)
@given(st.lists(PARTS, max_size=8))
def test_urls_of_dangerous_parts(parts: list[str]) -> None:
    target, _ = TARGETS["url"]
    target("".join(parts).encode())
    target(SEED_URLS[0] + "".join(parts).encode())
