"""How many requests wait, for the position that a submit is told and for the caller's limit."""

import time
from collections.abc import Callable, Iterable
from typing import Final

from sqlalchemy.orm import Session

from app.requests import turns
from app.requests.turns import Line, Waiting

LONG: Final = 500
"""Requests. Counting takes time for each that waits, and a burst of submits counts often."""
FRESH_S: Final = 0.25
"""How old the count of a long queue may be."""


class QueueLengths:
    """Counts what waits, of one gateway; for one thread.

    A queue of up to `LONG` is counted by every call. A longer one is counted four times a second,
    and what this gateway adds meanwhile is added here: its positions may miss what workers and
    other gateways did in that time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[tuple[int, str], Line] = {}
        self._good_until = float("-inf")

    def waiting(
        self, session: Session, owners: Iterable[str] = (), *, exact: bool = False
    ) -> Waiting:
        """``owners`` are asked about. ``exact``: counted now, however long it is."""
        now = self._clock()
        if exact or now >= self._good_until:
            self._lines = turns.lines(session)
            is_long = sum(line.num for line in self._lines.values()) > LONG
            self._good_until = now + FRESH_S if is_long else float("-inf")
        return turns.waiting_in(session, self._lines, owners)
