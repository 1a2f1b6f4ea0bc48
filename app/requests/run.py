"""fal's synchronous run: submit, wait, answer the result itself (`fal-protocol.md` 1.4, C47).

On fal the host tells a run from a submit: ``fal.run`` and ``queue.fal.run``. Here both may be one
host, so runs have paths of their own, ``/run/{endpoint}``; `app/hosts.py` sends there what comes
to a run host.
"""

import asyncio
import contextlib

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import REQUEST_ID, RunTimeout
from app.requests.schemas import Submitted
from app.requests.service import RequestService
from app.requests.stream import disconnected


async def wait_for_end(
    service: RequestService, submitted: Submitted, receive: Receive, limit_s: float
) -> None:
    """Returns once the request is COMPLETED. The request itself goes on, whatever is raised.

    Raises:
        RunTimeout: it is not after ``limit_s``, or the gateway stops.
        ClientDisconnect: nobody waits any more.
    """
    ending = asyncio.create_task(_end(service, submitted.request_id))
    leaving = asyncio.create_task(disconnected(receive))
    try:
        await asyncio.wait({ending, leaving}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if ending.done() and ending.result():
            return
        if leaving.done():
            raise ClientDisconnect
    finally:
        ending.cancel()
        leaving.cancel()
        await asyncio.gather(ending, leaving, return_exceptions=True)
    raise RunTimeout(
        f"Request {submitted.request_id} is still in progress; it goes on in the queue. Follow "
        f"{submitted.status_url} and read its result at {submitted.response_url}. Use submit or "
        "subscribe for trainings: run waits at most "
        f"{limit_s:g} s.",
        {REQUEST_ID: submitted.request_id},
    )


async def _end(service: RequestService, request_id: str) -> bool:
    """True: COMPLETED. False: waiting is over without that."""
    watching = service.watcher.changes(request_id, quiet_s=3600.0)
    async with contextlib.aclosing(watching) as changes:
        async for changed in changes:
            if changed is not None and changed.completed:
                return True
    return False
