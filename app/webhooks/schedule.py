"""When a webhook is tried, and how long it waits for an answer (`fal-protocol.md` 2.8)."""

import zlib
from dataclasses import dataclass
from typing import Final

MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE

GAPS_S: Final = (
    # A webhook can arrive before its submitter has stored the id, and answering 404 for that is a
    # known trick: the first retries come within seconds.
    *(5.0, 15.0, 30.0),
    # Ten retries in the first two hours: a receiver that is restarted, a deployment.
    *(1 * MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 20 * MINUTE, 30 * MINUTE, 50 * MINUTE),
    # The rest until the result expires: an outage that somebody has to notice first.
    *(2 * HOUR, 3 * HOUR, 4 * HOUR, 6 * HOUR, 8 * HOUR, 12 * HOUR, 18 * HOUR),
    *(24 * HOUR, 24 * HOUR, 36 * HOUR, 36 * HOUR, 48 * HOUR, 48 * HOUR, 48 * HOUR),
    *(60 * HOUR, 60 * HOUR, 60 * HOUR, 72 * HOUR, 72 * HOUR, 72 * HOUR),
)
"""Seconds between the end of a failed attempt and the next one: 30 retries in 30 days."""

JITTER: Final = 0.1
"""The part of a gap that is left out at most: what failed together does not come back together."""


@dataclass(frozen=True)
class Schedule:
    """Attempts are numbered from 1."""

    gaps_s: tuple[float, ...] = GAPS_S
    first_timeout_s: float = 15.0
    timeout_s: float = 120.0
    """Of every attempt after the first."""
    give_up_after_s: float = 30 * 24 * HOUR
    """After the request's end; its result is not kept longer."""
    lease_margin_s: float = 30.0
    """What an attempt may take beside waiting for the receiver: signing, looking up, recording."""

    def at_pace(self, pace: float) -> "Schedule":
        """The same, with every time multiplied by ``pace``."""
        return Schedule(
            gaps_s=tuple(gap * pace for gap in self.gaps_s),
            first_timeout_s=self.first_timeout_s * pace,
            timeout_s=self.timeout_s * pace,
            give_up_after_s=self.give_up_after_s * pace,
            lease_margin_s=self.lease_margin_s * pace,
        )

    def gap_s(self, attempt: int, request_id: str) -> float | None:
        """The wait after failed attempt ``attempt``; None: that was the last."""
        if attempt > len(self.gaps_s):
            return None
        share = zlib.crc32(f"{request_id}:{attempt}".encode()) / 2**32
        return self.gaps_s[attempt - 1] * (1 - JITTER * share)

    def timeout_of(self, attempt: int) -> float:
        """Seconds from connecting to the answer's head."""
        return self.first_timeout_s if attempt == 1 else self.timeout_s


SCHEDULE: Final = Schedule()
