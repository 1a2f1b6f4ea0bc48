"""The schedule as the protocol gives it (`fal-protocol.md` 2.8; `reliability.md` R12)."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from app.webhooks.schedule import GAPS_S, JITTER, SCHEDULE

HOUR_S = 3600.0


def test_the_table() -> None:
    assert len(GAPS_S) + 1 == 31
    assert GAPS_S[0] < 10
    assert all(earlier <= later for earlier, later in itertools.pairwise(GAPS_S))
    assert 1.9 * HOUR_S < sum(GAPS_S[:10]) <= 2 * HOUR_S
    assert 29 * 24 * HOUR_S < sum(GAPS_S) < SCHEDULE.give_up_after_s == 30 * 24 * HOUR_S


def test_timeouts() -> None:
    assert [SCHEDULE.timeout_of(attempt) for attempt in (1, 2, 31)] == [15, 120, 120]


@given(attempt=st.integers(1, 30), request_id=st.uuids().map(str))
def test_a_gap_is_shortened_by_a_tenth_at_most(attempt: int, request_id: str) -> None:
    gap_s = SCHEDULE.gap_s(attempt, request_id)
    assert gap_s is not None
    assert GAPS_S[attempt - 1] * (1 - JITTER) <= gap_s <= GAPS_S[attempt - 1]
    assert SCHEDULE.gap_s(attempt, request_id) == gap_s


def test_what_fails_together_comes_back_apart() -> None:
    gaps = {SCHEDULE.gap_s(4, f"request {number}") for number in range(100)}
    assert len(gaps) == 100


def test_there_is_no_32nd_attempt() -> None:
    assert SCHEDULE.gap_s(31, "x") is None
