"""A cancelled background task ends, whenever the cancellation comes."""

import asyncio

import pytest

from app.waiting import event_within


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_is_not_lost_when_the_event_is_set_just_then(turns: int) -> None:
    """``turns`` of the loop lie between the event and the cancellation."""

    async def forever(event: asyncio.Event) -> None:
        while True:
            await event_within(event, 60.0)
            event.clear()

    async def run() -> bool:
        event = asyncio.Event()
        task = asyncio.create_task(forever(event))
        await asyncio.sleep(0.01)
        event.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        _, waiting = await asyncio.wait([task], timeout=10.0)
        task.cancel()
        return not waiting

    assert asyncio.run(run())


def test_it_ends_with_the_event_or_the_time() -> None:
    async def run() -> None:
        event = asyncio.Event()
        await event_within(event, 0.001)
        assert not event.is_set()
        event.set()
        async with asyncio.timeout(60.0):
            await event_within(event, 3600.0)

    asyncio.run(run())
