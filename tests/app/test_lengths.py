"""How many wait: counted each time while they are few, now and then when they are many."""

from collections.abc import Callable

import pytest

from app.db.engine import Database
from app.db.models import RANK, Priority
from app.requests import lengths
from app.requests.lengths import QueueLengths
from tests.app.conftest import LOW, submit

NORMAL_RANK, LOW_RANK = RANK[Priority.NORMAL], RANK[Priority.LOW]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def of(database: Database, clock: Clock) -> Callable[..., dict[int, int]]:
    """How many wait, by rank."""
    counted = QueueLengths(clock)

    def of(*, exact: bool = False) -> dict[int, int]:
        with database.read() as session:
            lines = counted.waiting(session, exact=exact).lines
        return {rank: line.num for (rank, _), line in lines.items()}

    return of


def test_a_short_queue_is_counted_each_time(
    database: Database, of: Callable[..., dict[int, int]]
) -> None:
    assert of() == {}
    submit(database)
    submit(database, **LOW)
    assert of() == {NORMAL_RANK: 1, LOW_RANK: 1}
    submit(database)
    assert of() == {NORMAL_RANK: 2, LOW_RANK: 1}


def test_a_long_queue_is_counted_now_and_then(
    database: Database,
    of: Callable[..., dict[int, int]],
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lengths, "LONG", 2)
    for _ in range(3):
        submit(database)
    assert of() == {NORMAL_RANK: 3}
    submit(database)
    assert of() == {NORMAL_RANK: 3}
    assert of(exact=True) == {NORMAL_RANK: 4}
    submit(database)
    clock.now += lengths.FRESH_S
    assert of() == {NORMAL_RANK: 5}
