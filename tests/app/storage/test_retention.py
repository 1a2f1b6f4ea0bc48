"""What is too old goes, files first; what is in use stays. On both databases and both stores."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from app.db.engine import AsyncDatabase, Database
from app.db.models import Attempt, Event, LogLine, Purpose, Request, Stage, Upload, WebhookAttempt
from app.requests import lifecycle, retention
from app.requests.lifecycle import Happened, Log
from app.requests.retention import UNCLAIMED_FOR_S, Removed, Retention
from app.storage.base import Storage
from app.storage.errors import StorageRefused, StorageUnavailable
from tests.app.conftest import put, row, submit
from tests.app.storage.conftest import Clock
from tests.app.test_lifecycle import claimed, do

DAY_S = 24 * 3600.0
KEPT_S = 30 * DAY_S
KEY = "prepared/" + "ab" * 32
Make = Callable[[bytes], Path]


class Service:
    """One gateway's retention, on a database and a store that tests fill."""

    def __init__(self, url: str, storage: Storage, file: Make) -> None:
        self.url = url
        self.database = Database(url)
        self.storage = storage
        self.file = file
        self.clock = Clock()

    def sweep(self, *storages: Storage, kept_s: float = KEPT_S) -> list[Removed]:
        """A pass of as many gateways at once as stores are given, or of one."""

        async def all_of_them() -> list[Removed]:
            databases = [AsyncDatabase(self.url) for _ in storages or (0,)]
            try:
                passes = (
                    self.gateway(database, storage, kept_s).sweep()
                    for database, storage in zip(
                        databases, storages or (self.storage,), strict=True
                    )
                )
                return await asyncio.gather(*passes)
            finally:
                for database in databases:
                    await database.close()

        return asyncio.run(all_of_them())

    def gateway(self, database: AsyncDatabase, storage: Storage, kept_s: float) -> Retention:
        return Retention(database, storage, kept_s, clock=self.clock)

    def put(self, key: str, content: bytes = b"x") -> str:
        self.storage.put_file(key, self.file(content))
        return key

    def finished(self, days_ago: float = 31.0, **columns: Any) -> str:
        """A request that trained well and left a file, lines and events."""
        request_id = submit(self.database)
        held = claimed(self.database)
        do(self.database, lifecycle.progress, held, logs=[Log("a")], events=[Happened("step")])
        do(self.database, lifecycle.advance, held, {"key": KEY})
        train = claimed(self.database, Stage.TRAIN)
        self.put(f"{train.storage_prefix}/outputs/2/lora.safetensors")
        do(self.database, lifecycle.complete, train, {"lora_file": {"key": "k"}}, 100, 1.0)
        finished_at = Request.finished_at - days_ago * DAY_S
        put(self.database, request_id, **{"finished_at": finished_at, **columns})
        return request_id

    def files(self, request_id: str) -> list[str]:
        return self.storage.list_keys(row(self.database, request_id).storage_prefix)

    def expired(self, request_id: str) -> bool:
        return row(self.database, request_id).expired_at is not None

    def upload(self, name: str, *, days_ago: float = 31.0, stored: bool = True) -> str:
        """A file with its row; its key."""
        key = self.put(f"uploads/{name * 32}/clips.zip")
        with self.database.write() as session:
            session.add(Upload(key=key, owner="local"))
            session.flush()
            upload = session.get_one(Upload, key)
            session.refresh(upload)
            upload.created_at -= days_ago * DAY_S
            upload.stored_at = upload.created_at if stored else None
        return key

    def uploads(self) -> set[str]:
        with self.database.read() as session:
            return set(session.scalars(select(Upload.key)))


@pytest.fixture
def service(database_url: str, storage: Storage, file: Make) -> Iterator[Service]:
    service = Service(database_url, storage, file)
    yield service
    service.database.close()


def counts(database: Database, request_id: str) -> list[int]:
    tables = (LogLine, Event, Attempt, WebhookAttempt)
    with database.read() as session:
        return [
            session.scalar(
                select(func.count()).select_from(table).where(table.request_id == request_id)
            )
            or 0
            for table in tables
        ]


def test_an_old_request_leaves_a_tombstone(service: Service) -> None:
    old, young = service.finished(31), service.finished(29)
    with service.database.write() as session:
        session.add(WebhookAttempt(request_id=old, number=1))
    before = row(service.database, old)
    assert counts(service.database, old) == [1, 1, 2, 1]
    assert service.sweep() == [Removed(requests=1)]
    assert (service.files(old), counts(service.database, old)) == ([], [0, 0, 0, 0])
    left = row(service.database, old)
    assert left.expired_at is not None
    assert (left.input, left.result_body, left.prepared) == ({}, None, None)
    assert (left.owner, left.billable_units, left.result_status) == (before.owner, 100, 200)
    assert (left.created_at, left.finished_at) == (before.created_at, before.finished_at)
    assert not service.expired(young)
    assert len(service.files(young)) == 1
    assert counts(service.database, young) == [1, 1, 2, 0]
    assert service.sweep() == [Removed()]


def test_nothing_expires_before_its_end(service: Service) -> None:
    ids = [submit(service.database) for _ in range(2)]
    claimed(service.database)
    for request_id in ids:
        put(service.database, request_id, created_at=1.0, started_at=1.0)
    assert service.sweep() == [Removed()]
    assert not any(map(service.expired, ids))


def test_a_webhook_that_is_due_keeps_its_request(service: Service) -> None:
    request_id = service.finished(webhook_next_at=1.0)
    assert service.sweep() == [Removed()]
    assert len(service.files(request_id)) == 1
    put(service.database, request_id, webhook_next_at=None)
    assert service.sweep() == [Removed(requests=1)]


def test_without_a_retention_everything_stays(service: Service) -> None:
    request_id = service.finished()
    upload = service.upload("a")
    assert service.sweep(kept_s=0) == [Removed()]
    assert not service.expired(request_id)
    assert service.storage.stat(upload) is not None


class Broken:
    """A store in which one key or tree can't be removed."""

    def __init__(self, store: Storage, what: str, error: Exception) -> None:
        self._store = store
        self._what = what
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def delete_tree(self, prefix: str) -> None:
        if prefix == self._what:
            raise self._error
        self._store.delete_tree(prefix)

    def delete(self, key: str) -> None:
        if key == self._what:
            raise self._error
        self._store.delete(key)


def test_files_that_can_not_be_removed_are_not_forgotten(service: Service) -> None:
    """And the rest is removed nevertheless."""
    first, second = service.finished(33), service.finished(32)
    prefix = row(service.database, first).storage_prefix
    broken: Any = Broken(service.storage, prefix, StorageRefused("no"))
    assert service.sweep(broken) == [Removed(requests=1)]
    assert [service.expired(id) for id in (first, second)] == [False, True]
    assert row(service.database, first).result_body is not None
    assert service.sweep() == [Removed(requests=1)]

    stuck, _ = service.upload("a"), service.upload("b")
    broken = Broken(service.storage, stuck, StorageRefused("no"))
    assert service.sweep(broken) == [Removed(uploads=1)]
    assert service.uploads() == {stuck}
    assert service.sweep() == [Removed(uploads=1)]


def test_a_store_that_is_away_stops_the_pass(service: Service) -> None:
    first, second = service.finished(33), service.finished(32)
    away: Any = Broken(
        service.storage, row(service.database, first).storage_prefix, StorageUnavailable("away")
    )
    with pytest.raises(StorageUnavailable):
        service.sweep(away)
    assert not service.expired(second)
    assert service.sweep() == [Removed(requests=2)]


def test_who_dies_between_files_and_row_is_followed_up(service: Service) -> None:
    request_id = service.finished()
    service.storage.delete_tree(row(service.database, request_id).storage_prefix)
    assert service.sweep() == [Removed(requests=1)]
    assert service.expired(request_id)


def test_several_gateways_in_small_batches(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "BATCH", 2)
    ids = [service.finished() for _ in range(5)]
    keys = [service.upload(name) for name in "abcde"]
    passes = service.sweep(service.storage, service.storage, service.storage)
    assert sum(one.requests for one in passes) == len(ids)
    assert sum(one.uploads for one in passes) == len(keys)
    assert all(map(service.expired, ids))
    assert service.uploads() == set()
    assert service.storage.list_keys("uploads") == []


def test_uploads_go_when_they_are_old_and_nobody_uses_them(service: Service) -> None:
    old, young = service.upload("a"), service.upload("b", days_ago=29)
    assert service.sweep() == [Removed(uploads=1)]
    assert service.uploads() == {young}
    assert service.storage.list_keys("uploads") == [young]
    assert service.storage.stat(old) is None


@pytest.mark.parametrize("where", ["training_data_url", "validation"])
@pytest.mark.parametrize("state", ["queued", "running"])
def test_an_upload_in_use_stays(service: Service, where: str, state: str) -> None:
    used, other = service.upload("a"), service.upload("b")
    url = service.storage.signed_url(used) if where == "validation" else f"http://x/files/1/{used}"
    input = {where: [{"prompt": "a", "video_url": url}] if where == "validation" else url}
    request_id = submit(service.database)
    put(service.database, request_id, input=input)
    held = claimed(service.database) if state == "running" else None
    assert service.sweep() == [Removed(uploads=1)]
    assert service.uploads() == {used}
    assert service.storage.stat(other) is None
    if held is None:
        held = claimed(service.database)
    do(service.database, lifecycle.complete, held, {}, 0, 1.0)
    assert service.sweep() == [Removed(uploads=1)]
    assert service.uploads() == set()


def test_what_was_begun_and_never_came(service: Service) -> None:
    service.upload("a", days_ago=1.1, stored=False)
    begun = service.upload("b", days_ago=0.9, stored=False)
    assert service.sweep(kept_s=0) == [Removed(uploads=1)]
    assert service.uploads() == {begun}


def test_files_without_a_row_get_one(service: Service) -> None:
    key = service.put(f"uploads/{'c' * 32}/old.zip")
    assert service.sweep(service.storage, service.storage) == [Removed(), Removed()]
    assert service.uploads() == {key}
    with service.database.write() as session:
        upload = session.get_one(Upload, key)
        assert upload.stored_at is not None
        upload.stored_at -= 31 * DAY_S
    assert service.sweep() == [Removed(uploads=1)]
    assert service.storage.stat(key) is None


class Meanwhile:
    """A store in which something happens right after uploads were listed."""

    def __init__(self, store: Storage, happens: Callable[[], object]) -> None:
        self._store = store
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list_keys(self, prefix: str) -> list[str]:
        found = self._store.list_keys(prefix)
        if prefix == "uploads":
            self._happens()
        return found


def test_a_file_that_another_gateway_removes_gets_no_row(service: Service) -> None:
    key = service.upload("a")

    def remove() -> None:
        service.storage.delete(key)
        assert do(service.database, retention.forget_upload, key)

    slow: Any = Meanwhile(service.storage, remove)
    assert service.sweep(slow) == [Removed()]
    assert service.uploads() == set()


def test_prepared_datasets_go_with_the_last_request_that_used_them(service: Service) -> None:
    for name in ("manifest.json", "samples/0001.frames.npy"):
        service.put(f"{KEY}/{name}")
    old, young = service.finished(31), service.finished(29)

    async def passes() -> list[int]:
        database = AsyncDatabase(service.url)
        try:
            one = service.gateway(database, service.storage, KEPT_S)
            found = []
            for later_s, request_id in ((0.0, young), (UNCLAIMED_FOR_S, young), (0.0, None)):
                service.clock.now += later_s
                found.append((await one.sweep()).prepared)
                if request_id is not None and later_s:
                    put(service.database, request_id, finished_at=Request.finished_at - 2 * DAY_S)
            service.clock.now += UNCLAIMED_FOR_S - 1
            found.append((await one.sweep()).prepared)
            service.clock.now += 1
            found.append((await one.sweep()).prepared)
            return found
        finally:
            await database.close()

    assert asyncio.run(passes()) == [0, 0, 0, 0, 1]
    assert service.expired(old)
    assert service.expired(young)
    assert service.storage.list_keys("prepared") == []


def test_loras_and_links_go_as_datasets_do(service: Service) -> None:
    """Those that a request names stay; the others go after an hour."""
    used = {"key": "loras/" + "a" * 64, "link": "links/" + "b" * 64}
    unused = ["loras/" + "c" * 64, "links/" + "d" * 64]
    for folder in (*used.values(), *unused):
        service.put(f"{folder}/manifest.json")
    submit(service.database, purpose=Purpose.CHECK)
    held = claimed(service.database)
    prepared = {"loras": [used, {"key": used["key"], "link": None}]}
    do(service.database, lifecycle.complete, held, {}, 0, 1.0, prepared=prepared)

    async def passes() -> list[int]:
        database = AsyncDatabase(service.url)
        try:
            one = service.gateway(database, service.storage, KEPT_S)
            found = [(await one.sweep()).prepared]
            service.clock.now += UNCLAIMED_FOR_S
            return [*found, (await one.sweep()).prepared]
        finally:
            await database.close()

    assert asyncio.run(passes()) == [0, 2]
    kept = service.storage.list_keys("loras") + service.storage.list_keys("links")
    assert kept == [f"{folder}/manifest.json" for folder in used.values()]


def test_a_check_keeps_what_it_prepared(service: Service) -> None:
    request_id = submit(service.database, purpose=Purpose.CHECK)
    held = claimed(service.database)
    do(service.database, lifecycle.complete, held, {}, 0, 1.0, prepared={"key": KEY})
    with service.database.read() as session:
        assert retention.claimed_folders(session) == {KEY}
    put(service.database, request_id, expired_at=1.0)
    with service.database.read() as session:
        assert retention.claimed_folders(session) == set()
