"""What processes that died leave behind goes by itself, on disk and in the store."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from app.clock import db_now
from app.db.engine import AsyncDatabase, Database
from app.db.models import Request, Stage, State
from app.requests import lifecycle
from app.requests.background import ABANDONED_AFTER_S, ENDED_BEFORE_S, Sweeper
from app.requests.repository import ended_lately
from app.storage.base import Storage
from app.storage.receiving import sweep_staged
from tests.app.conftest import put, submit
from tests.app.test_lifecycle import claimed, do

Make = Callable[[bytes], Path]


def sweep(url: str, storage: Storage, staging: Path) -> None:
    async def once() -> None:
        database = AsyncDatabase(url)
        try:
            await Sweeper(storage, database, staging).sweep()
        finally:
            await database.close()

    asyncio.run(once())


def test_outputs_of_lost_attempts_and_checkpoints_go(
    database: Database, database_url: str, storage: Storage, file: Make, tmp_path: Path
) -> None:
    request_id = submit(database)
    do(database, lifecycle.advance, claimed(database), {"key": "prepared/x"})
    train = claimed(database, Stage.TRAIN)
    prefix = train.storage_prefix
    kept = [
        f"{prefix}/outputs/2/lora.safetensors",
        f"{prefix}/outputs/1/debug_dataset.zip",
        f"{prefix}/previews/1/a.mp4",
        f"{prefix}/report.json",
    ]
    lost = [f"{prefix}/outputs/1/lora.safetensors", f"{prefix}/checkpoints/000020-1/manifest.json"]
    for key in [*kept, *lost]:
        storage.put_file(key, file(b"x"))
    body = {"lora_file": {"key": kept[0]}, "debug_dataset": {"key": kept[1]}, "video": None}
    do(database, lifecycle.complete, train, body, 100, 1.0)
    sweep(database_url, storage, tmp_path / "staging")
    assert storage.list_keys(prefix) == sorted([*kept, *lost]), "whoever lost it may still write"
    put(database, request_id, finished_at=Request.finished_at - ENDED_BEFORE_S - 1)
    sweep(database_url, storage, tmp_path / "staging")
    assert storage.list_keys(prefix) == sorted(kept)


def test_each_that_has_ended_is_looked_at_once(database: Database) -> None:
    """In any number of looks, and where many ended in one moment."""
    ids = [submit(database) for _ in range(7)]
    with database.read() as session:
        now = session.scalar(select(db_now()))
    assert now is not None
    for number, request_id in enumerate(ids):
        ended = now - ENDED_BEFORE_S - 10 + number // 5
        put(database, request_id, finished_at=ended, state=State.COMPLETED)
    put(database, submit(database), finished_at=now, state=State.COMPLETED)  # too lately
    seen: list[str] = []
    after = (0.0, "")
    with database.read() as session:
        while found := ended_lately(session, ENDED_BEFORE_S, after, limit=2):
            assert len(found) <= 2
            seen += [one.id for one in found]
            after = (found[-1].finished_at, found[-1].id)
    assert seen == sorted(ids[:5]) + sorted(ids[5:])


def test_bodies_that_a_dead_gateway_was_receiving_go(tmp_path: Path) -> None:
    staging = tmp_path / "staging"
    assert sweep_staged(staging, 0.0) == 0, "a gateway that never received anything has no folder"
    staging.mkdir()
    for name in ("old", "young"):
        (staging / name).write_bytes(b"half a body")
    yesterday = time.time() - ABANDONED_AFTER_S - 1
    os.utime(staging / "old", (yesterday, yesterday))
    assert sweep_staged(staging, ABANDONED_AFTER_S) == 1
    assert [path.name for path in staging.iterdir()] == ["young"]
