"""Requests in flight go on in the tables of another version, forward and back (R22).

`releases/` holds rows as the versions of those revisions wrote them; they are never edited.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from sqlalchemy import make_url
from typer.testing import CliRunner

from app.cli import main
from app.db.engine import Database
from app.db.migrate import config, downgrade, upgrade
from app.db.models import Request, Stage, State
from app.requests import lifecycle, reaper
from tests.app.conftest import postgres_url, submit
from tests.app.test_lifecycle import claimed, do

RELEASES = sorted((Path(__file__).parent / "releases").glob("*.json"))
ID = "00000000-0000-4000-8000-00000000000{}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'reelsmith.db'}"
        return
    server = postgres_url()
    name = f"{make_url(server).database}_versions"
    engine = sa.create_engine(Database(server).engine.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE IF EXISTS "{name}"'))
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
    engine.dispose()


@pytest.fixture
def opened(url: str) -> Iterator[Callable[[], Database]]:
    """Opens it; closed at the end."""
    databases: list[Database] = []

    def open_() -> Database:
        databases.append(Database(url))
        return databases[-1]

    yield open_
    for database in databases:
        database.close()


def fill(database: Database, release: Path) -> None:
    """With a version's rows, by the tables as they are there."""
    metadata = sa.MetaData()
    metadata.reflect(database.engine)
    with database.engine.begin() as connection:
        for name, rows in json.loads(release.read_text()).items():
            for row in rows:
                connection.execute(metadata.tables[name].insert().values(**row))


def found(database: Database) -> dict[str, Request]:
    with database.read() as session:
        return {row.id: row for row in session.scalars(sa.select(Request))}


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.stem)
def test_what_an_older_version_left_goes_on(
    url: str, opened: Callable[[], Database], release: Path
) -> None:
    upgrade(url, release.stem)
    fill(opened(), release)
    upgrade(url)
    database = opened()
    queued, lost, completed = (found(database)[ID.format(number)] for number in (1, 2, 3))
    assert queued.input["a_field_of_another_version"] == 1
    assert (completed.state, completed.billable_units) == (State.COMPLETED, 2000)
    assert completed.result_body is not None
    assert completed.result_body["lora_file"]["file_size"] == 3
    assert do(database, reaper.reap).requeued == [lost.id]
    held = claimed(database)
    assert held.request_id == queued.id
    do(database, lifecycle.advance, held, {"key": "prepared/x"})
    first, second = claimed(database, Stage.TRAIN), claimed(database, Stage.TRAIN)
    assert (first.request_id, second.request_id) == (queued.id, lost.id), "in their old order"
    assert (second.prepared, second.attempt) == ({"key": "prepared/00112233"}, 3)
    for train in (first, second):
        do(database, lifecycle.complete, train, {"lora_file": None}, 2000, 1.0)
    assert {row.state for row in found(database).values()} == {State.COMPLETED}


def test_back_and_forth_with_requests_in_flight(
    url: str, opened: Callable[[], Database], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upgrade(url)
    database = opened()
    running, waiting = submit(database), submit(database)
    held = claimed(database)
    database.close()
    monkeypatch.setenv("REELSMITH_DATABASE_URL", url)
    monkeypatch.setenv("REELSMITH_DATA_DIR", str(tmp_path))
    done = CliRunner().invoke(main, ["migrate", "--to", "0001"])
    assert done.exit_code == 0, done.output
    metadata = sa.MetaData()
    metadata.reflect(opened().engine)
    columns = set(metadata.tables["requests"].columns.keys())
    assert columns >= set(json.loads(RELEASES[0].read_text())["requests"][0])
    assert "idempotency_key" not in columns
    assert CliRunner().invoke(main, ["migrate"]).exit_code == 0
    again = opened()
    assert {row.id: row.state for row in found(again).values()} == {
        running: State.RUNNING,
        waiting: State.QUEUED,
    }
    do(again, lifecycle.renew, held)
    do(again, lifecycle.advance, held, {"key": "prepared/x"})
    assert claimed(again).request_id == waiting


def test_every_revision_goes_back(url: str, opened: Callable[[], Database]) -> None:
    upgrade(url)
    database = opened()
    script = ScriptDirectory.from_config(config(database))
    revisions: list[Any] = [revision.revision for revision in script.walk_revisions()]
    for revision in revisions[1:]:
        submit(database)
        downgrade(url, revision)
        upgrade(url)
    assert len(found(database)) == len(revisions) - 1
