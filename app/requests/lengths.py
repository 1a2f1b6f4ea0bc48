"""How many requests wait, for the position that a submit is told and for the caller's limit."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy.orm import Session

from app.keys import limits
from app.requests import repository

LONG: Final = 500
"""Requests. Counting takes time for each that waits, and a burst of submits counts often."""
FRESH_S: Final = 0.25
"""How old the count of a long queue may be."""


@dataclass(frozen=True)
class Waiting:
    """What waits, as one transaction sees it; it adds what it stores."""

    by_rank: dict[int, int]
    passed_over: dict[tuple[str, int], int]
    """Of it, the requests of owners that run as many as they may: (owner, rank) -> count."""
    at_limit: frozenset[str]
    """Those owners."""

    @property
    def total(self) -> int:
        return sum(self.by_rank.values())

    def before(self, owner: str, rank: int) -> int:
        """The position of ``owner``'s next one: all of a better or the same priority come before,
        but what is passed over, except the owner's own."""
        ahead = sum(count for other, count in self.by_rank.items() if other <= rank)
        skipped = sum(
            count
            for (whose, other), count in self.passed_over.items()
            if other <= rank and whose != owner
        )
        return max(0, ahead - skipped)

    def add(self, owner: str, rank: int) -> None:
        self.by_rank[rank] = self.by_rank.get(rank, 0) + 1
        if owner in self.at_limit:
            self.passed_over[owner, rank] = self.passed_over.get((owner, rank), 0) + 1


class QueueLengths:
    """Counts what waits, of one gateway; for one thread.

    A queue of up to `LONG` is counted by every call. A longer one is counted four times a second,
    and what this gateway adds meanwhile is added here: its positions may miss what workers and
    other gateways did in that time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted: dict[int, int] = {}
        self._good_until = float("-inf")

    def waiting(self, session: Session, *, exact: bool) -> Waiting:
        """``exact``: counted now, however long it is."""
        now = self._clock()
        if exact or now >= self._good_until:
            self._counted = repository.queued_by_priority(session)
            is_long = sum(self._counted.values()) > LONG
            self._good_until = now + FRESH_S if is_long else float("-inf")
        at_limit = limits.passed_over(session)
        passed_over = repository.queued_of(session, at_limit) if at_limit else {}
        return Waiting(self._counted, passed_over, frozenset(at_limit))
