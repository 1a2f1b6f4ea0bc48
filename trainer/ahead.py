"""The next step's batch is read and its random numbers are drawn while the device computes."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """``make(number)`` for rising numbers, each made by a thread while the one before is used.

    What ``make`` raises is raised by `take`, for its number.
    """

    def __init__(self, make: Callable[[int], Item], end: int, pool: ThreadPoolExecutor) -> None:
        self._make = make
        self._end = end
        self._pool = pool
        self._next: tuple[int, Future[Item]] | None = None

    def take(self, number: int) -> Item:
        if self._next is None or self._next[0] != number:
            self._submit(number)
        assert self._next is not None
        item = self._next[1].result()
        self._next = None
        if number + 1 < self._end:
            self._submit(number + 1)
        return item

    def _submit(self, number: int) -> None:
        self._next = number, self._pool.submit(self._make, number)


@contextmanager
def ahead(make: Callable[[int], Item], end: int) -> Iterator[Ahead[Item]]:
    """Numbers below ``end``; on leaving, the thread is gone."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="next-step") as pool:
        yield Ahead(make, end, pool)
