"""How many requests wait, for the position that a submit is told and for the caller's limit."""

import time
from collections.abc import Callable
from typing import Final

from sqlalchemy.orm import Session

from app.requests import repository

LONG: Final = 500
"""Requests. Counting takes time for each that waits, and a burst of submits counts often."""
FRESH_S: Final = 0.25
"""How old the count of a long queue may be."""


class QueueLengths:
    """Counts by rank, of one gateway; for one thread.

    A queue of up to `LONG` is counted by every call. A longer one is counted four times a second,
    and what this gateway adds meanwhile is added here: its positions may miss what workers and
    other gateways did in that time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: dict[int, int] = {}
        self._good_until = float("-inf")

    def of(self, session: Session, *, exact: bool) -> dict[int, int]:
        """Rank -> how many wait. The caller adds what it stores. ``exact``: counted now."""
        now = self._clock()
        if exact or now >= self._good_until:
            self._counted = repository.queued_by_priority(session)
            is_long = sum(self._counted.values()) > LONG
            self._good_until = now + FRESH_S if is_long else float("-inf")
        return self._counted
