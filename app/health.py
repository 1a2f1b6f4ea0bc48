"""Whether this process lives, and whether it can serve: database, store and broker, in seconds."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import structlog
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.orm import Session

from app.db.engine import AsyncDatabase
from app.storage import Storage

TIMEOUT_S: Final = 3.0
"""Of each check; they run side by side."""
STORE_EVERY_S: Final = 10.0
"""A write to the store costs money and time: probes in between get the last answer."""
PROBE_KEY: Final = "health/probe"
PROBE_FILE: Final = "health-probe"
PROBE_CONTENT: Final = b"ok"

log = structlog.get_logger()

Check = Callable[[], Awaitable[None]]
"""Raises when it is not well."""


class Readiness(BaseModel):
    """``degraded``: it serves, and something is late."""

    status: Literal["ok", "degraded", "not ready"]
    checks: dict[str, str]
    """``ok``, or what is wrong. Details are in the log: this answer is public."""


class Health:
    """The checks of one gateway."""

    def __init__(
        self,
        database: AsyncDatabase,
        storage: Storage,
        ping_broker: Callable[[], None] | None,
        folder: Path,
    ) -> None:
        """``folder``: the service's own, for the file that is stored."""
        self._database = database
        self._storage = storage
        self._probe = folder / PROBE_FILE
        self._ping_broker = ping_broker
        self._written_at = float("-inf")
        self._write_s = 0.0
        self._writing: asyncio.Task[float] | None = None

    async def readiness(self) -> Readiness:
        """Never raises, and takes no longer than `TIMEOUT_S`."""
        checks: dict[str, Check] = {"database": self._ask_database, "store": self._write}
        if self._ping_broker is not None:
            checks["broker"] = self._ask_broker
        said = await asyncio.gather(*(_said(name, check) for name, check in checks.items()))
        found = dict(zip(checks, said, strict=True))
        if found["database"] != "ok" or found["store"] != "ok":
            return Readiness(status="not ready", checks=found)
        # Wake-ups wait in the rows for a broker that is away: submits, polls and results go on.
        late = found.get("broker", "ok") != "ok"
        return Readiness(status="degraded" if late else "ok", checks=found)

    async def store_s(self) -> float | None:
        """Seconds that the last write to the store took, at most `STORE_EVERY_S` ago; None where
        it is not well."""
        return self._write_s if await _said("store", self._write) == "ok" else None

    async def _ask_database(self) -> None:
        await self._database.read(_ping)

    async def _write(self) -> None:
        if time.monotonic() - self._written_at < STORE_EVERY_S:
            return
        if self._writing is None or self._writing.done():
            # One at a time: a store that hangs must not collect threads.
            self._writing = asyncio.create_task(asyncio.to_thread(_put, self._storage, self._probe))
        self._write_s = await asyncio.shield(self._writing)
        self._written_at = time.monotonic()

    async def _ask_broker(self) -> None:
        assert self._ping_broker is not None
        await asyncio.to_thread(self._ping_broker)


async def _said(name: str, check: Check) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await check()
    except TimeoutError:
        log.warning("health.failed", check=name, error=f"no answer in {TIMEOUT_S:g} s")
        return f"no answer within {TIMEOUT_S:g} s"
    except Exception as error:
        log.warning("health.failed", check=name, error=repr(error))
        return f"fails: {type(error).__name__}"
    return "ok"


def _ping(session: Session) -> None:
    session.execute(text("SELECT version_num FROM alembic_version"))


def _put(storage: Storage, probe: Path) -> float:
    """Seconds. The file stays, under one name: a temporary one would be left by who is killed.

    It is never truncated: another gateway may be storing it. Whoever finds it empty, as one that
    is about to write or died before it did leaves it, writes the same into it.
    """
    began = time.monotonic()
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()
    if probe.stat().st_size == 0:
        with probe.open("r+b") as file:
            file.write(PROBE_CONTENT)
    storage.put_file(PROBE_KEY, probe)
    return time.monotonic() - began


def make_router(health: Health) -> APIRouter:
    """``/healthz`` and ``/readyz``, and the same without their z."""
    router = APIRouter(tags=["health"])

    @router.get("/health", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/ready", include_in_schema=False, response_model=Readiness)
    @router.get("/readyz", responses={503: {"model": Readiness}}, response_model=Readiness)
    async def readyz() -> JSONResponse:
        """The process can serve: database and store answer; 503 otherwise. A broker that is away
        makes it ``degraded``."""
        found = await health.readiness()
        return JSONResponse(found.model_dump(), 503 if found.status == "not ready" else 200)

    return router
