"""The service at a glance: workers, queue, what ended today, database and store."""

import asyncio
import shutil
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.auth import Authenticator, is_operator
from app.clock import DAY_S, db_now, iso8601
from app.db.engine import AsyncDatabase
from app.db.models import Request, Stage, State, Worker
from app.health import Health
from app.requests.listing import CANCELLED, listed, standing_of, usd_of
from app.requests.schemas import Listed
from app.settings import Settings

SILENT_AFTER_S: Final = 45.0
"""A worker says that it is there every 10 s; a busy database holds it up."""
MAX_FAILURES: Final = 20


class Line(BaseModel):
    """One queue."""

    queued: int = 0
    running: int = 0


class WorkerShown(BaseModel):
    name: str
    queue: str
    alive: bool = Field(description="It was heard of in the last 45 seconds.")
    started_at: str
    seen_at: str
    device: str | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    load_percent: float | None
    lacks: str | None = Field(
        description="`model`, `gpu` or `torch`: why it takes nothing, until that is mended."
    )
    request_id: str | None = Field(description="What it works on, if that is yours.")
    busy: bool


class Today(BaseModel):
    """Your requests that ended in the last 24 hours."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    usd: float = Field(
        default=0.0, description="What fal would have asked; nothing is charged here."
    )


class Store(BaseModel):
    kind: Literal["local", "s3"]
    ok: bool
    ms: float | None = Field(description="What its last write took, seconds ago.")
    total_bytes: int | None = Field(description="Of the disk, where it is a folder.")
    free_bytes: int | None


class Overview(BaseModel):
    version: str
    model: str
    database: Literal["sqlite", "postgresql"]
    store: Store
    queues: dict[str, Line] = Field(description="By stage: prepare, train. All keys' requests.")
    workers: list[WorkerShown]
    today: Today
    failures: list[Listed] = Field(description="Yours of the last 24 hours, the newest first.")
    operator: bool


def make_router(
    database: AsyncDatabase,
    authenticate: Authenticator,
    health: Health,
    settings: Settings,
    version: str,
) -> APIRouter:
    """``/overview``."""
    router = APIRouter(tags=["overview"])

    @router.get("/overview")
    async def get_overview(owner: Annotated[str, Depends(authenticate)]) -> Overview:
        """How the service is doing."""
        rows, store = await asyncio.gather(
            database.read(_read, owner, settings.public_url), _store(health, settings)
        )
        return Overview(
            version=version,
            model=settings.model_name,
            database="postgresql" if "postgres" in settings.database_url[:12] else "sqlite",
            store=store,
            operator=is_operator(owner),
            **rows,
        )

    return router


async def _store(health: Health, settings: Settings) -> Store:
    local = settings.s3_bucket is None
    usage = shutil.disk_usage(settings.data_dir) if local else None
    seconds = await health.store_s()
    return Store(
        kind="local" if local else "s3",
        ok=seconds is not None,
        ms=None if seconds is None else round(seconds * 1000, 1),
        total_bytes=usage.total if usage else None,
        free_bytes=usage.free if usage else None,
    )


def _read(session: Session, owner: str, public_url: str) -> dict[str, Any]:
    queues = {stage.value: Line() for stage in Stage}
    counts = session.execute(
        select(Request.stage, Request.state, func.count())
        .where(Request.state != State.COMPLETED)
        .group_by(Request.stage, Request.state)
    )
    for stage, state, count in counts:
        setattr(queues[stage], state, count)
    ended = session.scalars(
        select(Request)
        .where(
            Request.owner == owner,
            Request.state == State.COMPLETED,
            Request.expired_at.is_(None),
            Request.finished_at > db_now() - DAY_S,
        )
        .order_by(Request.finished_at.desc())
    ).all()
    today = Today()
    for row in ended:
        standing = standing_of(row)
        setattr(today, standing, getattr(today, standing) + 1)
        today.usd = round(today.usd + (usd_of(row) or 0.0), 4)
    failures = [
        Listed.model_validate(listed(row, public_url))
        for row in ended
        if row.result_status != 200 and row.error_type != CANCELLED
    ]
    return {
        "queues": queues,
        "workers": _workers(session, owner),
        "today": today,
        "failures": failures[:MAX_FAILURES],
    }


def _workers(session: Session, owner: str) -> list[WorkerShown]:
    now = session.scalar(select(db_now())) or 0.0
    running: Sequence[Any] = session.execute(
        select(Request.worker, Request.id, Request.owner).where(Request.state == State.RUNNING)
    ).all()
    current = {row.worker: row for row in running}
    found = []
    for worker in session.scalars(select(Worker).order_by(Worker.queue.desc(), Worker.name)):
        work = current.get(worker.name)
        found.append(
            WorkerShown(
                name=worker.name,
                queue=worker.queue,
                alive=now - worker.seen_at < SILENT_AFTER_S,
                started_at=iso8601(worker.started_at),
                seen_at=iso8601(worker.seen_at),
                device=worker.facts.get("device"),
                memory_total_bytes=worker.facts.get("memory_total_bytes"),
                memory_used_bytes=worker.facts.get("memory_used_bytes"),
                load_percent=worker.facts.get("load_percent"),
                lacks=worker.facts.get("lacks"),
                request_id=work.id if work is not None and work.owner == owner else None,
                busy=work is not None,
            )
        )
    return found
