"""Databases to test on, a gateway in this process, and requests to fill them with."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fastapi.testclient import TestClient
from psycopg import sql
from sqlalchemy import make_url, select, text, update

from app.db.engine import Database
from app.db.migrate import upgrade
from app.db.models import Base, Priority, Request
from app.gateway import create_app
from app.requests import repository
from app.requests.outbox import Send
from app.settings import Settings
from app.storage import make_storage

POSTGRES = "REELSMITH_TEST_POSTGRES_URL"
"""A database that the tests may empty."""

OWNER = "local"
MODE: dict[str, Any] = {
    "endpoint": "fal-ai/ltx23-trainer-v2/t2v",
    "app": "fal-ai/ltx23-trainer-v2",
    "mode": "t2v",
}


def postgres_url() -> str:
    url = os.environ.get(POSTGRES)
    if not url:
        if os.environ.get("CI"):
            pytest.fail(f"CI must set {POSTGRES} (see .ci/run)")
        pytest.skip(f"{POSTGRES} is not set")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    return database_of(url, worker) if worker else url


def database_of(url: str, worker: str) -> str:
    """A database of this test process alone: others empty theirs at any moment."""
    mine = make_url(url).set(database=f"{make_url(url).database}_{worker}")
    with psycopg.connect(url, autocommit=True) as connection:
        name = sql.Identifier(str(mine.database))
        found = connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", (mine.database,)
        ).fetchone()
        if found is None:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(name))
    return mine.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables and nothing in them, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "empty.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def migrated_postgres() -> str:
    """Made anew: a run that was interrupted may have left a table under another name."""
    url = postgres_url()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    upgrade(url)
    return url


def emptied(url: str) -> str:
    database = Database(url)
    with database.write() as session:
        tables = ", ".join(Base.metadata.tables)
        session.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
    database.close()
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return emptied(request.getfixturevalue("migrated_postgres"))
    path = tmp_path / "reelsmith.db"
    shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
    return f"sqlite:///{path}"


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An empty database, on SQLite and, where one is given, on PostgreSQL."""
    database = Database(database_url)
    yield database
    database.close()


def submit(database: Database, owner: str = OWNER, **fields: Any) -> str:
    """A queued request; returns its id."""
    new = repository.NewRequest(
        owner=owner, input={"training_data_url": "https://example.com/a.zip"}, **{**MODE, **fields}
    )
    with database.write() as session:
        return repository.add(session, new).id


LOW = {"priority": Priority.LOW}


def row(database: Database, request_id: str) -> Request:
    with database.read() as session:
        return session.scalars(select(Request).where(Request.id == request_id)).one()


def put(database: Database, request_id: str, **columns: Any) -> None:
    """Set columns behind the lifecycle's back, such as a lease's end."""
    with database.write() as session:
        session.execute(update(Request).where(Request.id == request_id).values(columns))


class Gateway:
    """A gateway in this process with a folder of its own. ``sent`` collects wake-ups."""

    def __init__(self, settings: Settings, send: Send | None) -> None:
        self.settings = settings
        self.sent: list[str] = []
        self.storage = make_storage(settings)
        self.app = create_app(settings, self.storage, send or self.sent.append)
        self.client = TestClient(self.app, base_url=settings.public_url)
        self.database = Database(settings.database_url)


@contextlib.contextmanager
def running(
    folder: Path, migrated: Path, send: Send | None = None, **settings: Any
) -> Iterator[Gateway]:
    """A gateway with the settings given, for the length of a block."""
    shutil.copy(migrated, folder / "reelsmith.db")
    gateway = Gateway(Settings(data_dir=folder, log_level="ERROR", **settings), send)
    with gateway.client:
        yield gateway
    gateway.database.close()


@pytest.fixture
def gateway(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Gateway]:
    """A gateway in single-user mode."""
    with running(tmp_path, migrated_sqlite) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def shared_gateway(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> Iterator[Gateway]:
    """The same, for tests that look at nothing but their own answer."""
    with running(tmp_path_factory.mktemp("gateway"), migrated_sqlite) as gateway:
        yield gateway
