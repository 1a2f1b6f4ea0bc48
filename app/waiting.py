"""Waiting for an event or for a while, without losing a cancellation."""

import asyncio
import contextlib


async def event_within(event: asyncio.Event, timeout_s: float) -> None:
    """Returns when ``event`` is set, or after ``timeout_s``.

    Not `asyncio.wait_for`: before Python 3.12 it returns instead of raising when it is cancelled
    just as the event is set, and whoever cancelled a background task then waits for ever.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
