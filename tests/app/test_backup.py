"""Backup and restore as docs/operations.md has them, of a service that is in use."""

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from app.db.models import Request, Stage, State
from app.requests import lifecycle, reaper
from tests.app.conftest import Gateway, emptied, postgres_url, put, row, running, submit
from tests.app.test_lifecycle import claimed, do

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()


def sqlite_backup() -> str:
    """The page's Python between its marks."""
    (found,) = re.findall(r"<<'PY'\n(.*?)PY\n", PAGE, re.DOTALL)
    return str(found)


def completed(gateway: Gateway, tmp_path: Path) -> str:
    """A finished training with a file."""
    request_id = submit(gateway.database)
    held = claimed(gateway.database)
    assert held.request_id == request_id
    do(gateway.database, lifecycle.advance, held, {"key": "prepared/x"})
    train = claimed(gateway.database, Stage.TRAIN)
    lora = tmp_path / "lora"
    lora.write_bytes(b"weights")
    key = f"{train.storage_prefix}/outputs/2/lora.safetensors"
    gateway.storage.put_file(key, lora)
    entry = {"key": key, "file_name": "lora.safetensors", "file_size": 7}
    body = {"lora_file": {**entry, "content_type": "application/octet-stream"}}
    do(gateway.database, lifecycle.complete, train, body, 2000, 1.0)
    return request_id


def test_sqlite_in_use(gateway: Gateway, tmp_path: Path, migrated_sqlite: Path) -> None:
    done = completed(gateway, tmp_path)
    lost = submit(gateway.database)
    held = claimed(gateway.database)
    assert held.request_id == lost
    waiting = submit(gateway.database)
    keys = gateway.client.get("/.well-known/jwks.json").json()

    ids: list[str] = []
    over = threading.Event()

    def submit_all() -> None:
        while not over.is_set():
            ids.append(submit(gateway.database))

    thread = threading.Thread(target=submit_all)
    thread.start()
    backup, data = tmp_path / "backup.db", gateway.settings.data_dir
    copy = tmp_path / "copy"
    copy.mkdir()
    try:
        command = [sys.executable, "-", str(data / "reelsmith.db"), str(backup)]
        subprocess.run(command, input=sqlite_backup().encode(), check=True)
        shutil.copytree(data / "storage", copy / "storage")
        shutil.copy(data / "secret", copy / "secret")
    finally:
        over.set()
        thread.join()
    assert ids

    with running(copy, backup) as restored:
        assert restored.client.get("/.well-known/jwks.json").json() == keys
        _goes_on(restored, done, lost, waiting)


def _goes_on(gateway: Gateway, done: str, lost: str, waiting: str) -> None:
    result = gateway.client.get(f"/fal-ai/ltx23-trainer-v2/requests/{done}")
    assert result.headers["x-fal-billable-units"] == "2000"
    path = httpx.URL(result.json()["lora_file"]["url"]).raw_path.decode()
    assert gateway.client.get(path).content == b"weights"
    put(gateway.database, lost, lease_expires_at=Request.lease_expires_at - 3600)
    do(gateway.database, reaper.reap)
    assert row(gateway.database, lost).state == State.QUEUED
    assert [claimed(gateway.database).request_id for _ in range(2)] == [lost, waiting]


def test_postgresql(tmp_path: Path, migrated_postgres: str, migrated_sqlite: Path) -> None:
    url = emptied(postgres_url())
    if shutil.which("pg_dump") is None:
        pytest.skip("pg_dump is not installed")
    (tmp_path / "data").mkdir()
    with running(tmp_path / "data", migrated_sqlite, database_url=url) as gateway:
        done = completed(gateway, tmp_path)
        lost = submit(gateway.database)
        claimed(gateway.database)
        waiting = submit(gateway.database)
        dump = str(tmp_path / "reelsmith.dump")
        subprocess.run(["pg_dump", "--format", "custom", "--file", dump, url], check=True)
        emptied(url)
    assert "pg_dump --format custom --file" in PAGE
    assert "pg_restore --clean --if-exists --dbname" in PAGE
    subprocess.run(
        ["pg_restore", "--clean", "--if-exists", "--dbname", url, dump], check=True
    )  # fmt: skip
    with running(tmp_path / "data", migrated_sqlite, database_url=url) as restored:
        _goes_on(restored, done, lost, waiting)
