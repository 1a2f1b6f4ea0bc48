"""Migrations make exactly the tables of the models, from nothing, and by many at once."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from app.db.engine import (
    Database,
    UnsupportedDatabase,
    driver_url,
)
from app.db.migrate import config, upgrade
from app.db.models import Base


def test_models_are_what_migrations_make(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []


def test_upgrading_again_changes_nothing(database_url: str, database: Database) -> None:
    upgrade(database_url)
    assert "requests" in inspect(database.engine).get_table_names()


def test_down_and_up_again(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    upgrade(url)
    database = Database(url)
    command.downgrade(config(database), "base")
    assert set(inspect(database.engine).get_table_names()) == {"alembic_version"}
    command.upgrade(config(database), "head")
    assert set(Base.metadata.tables) < set(inspect(database.engine).get_table_names())
    database.close()


def test_several_processes_may_start_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    code = "import sys; from app.db.migrate import upgrade; upgrade(sys.argv[1])"
    starting = [subprocess.Popen([sys.executable, "-c", code, url]) for _ in range(3)]
    assert [process.wait(60) for process in starting] == [0, 0, 0]
    database = Database(url)
    assert set(Base.metadata.tables) < set(inspect(database.engine).get_table_names())
    database.close()


def test_sqlite_is_set_up_for_several_processes(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    with database.read() as session:
        found = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    database.close()


@pytest.mark.parametrize("url", ["mysql://u@h/d", "oracle://u@h/d"])
def test_other_databases_are_refused_by_name(url: str) -> None:
    with pytest.raises(UnsupportedDatabase, match=url.split(":")[0]):
        Database(url)


def test_the_driver_is_ours_whatever_the_url_names() -> None:
    url = driver_url("postgres://u:p@h/d?sslmode=require&application_name=x")
    assert url.drivername == "postgresql+psycopg"
    assert dict(url.query) == {"sslmode": "require", "application_name": "x"}
