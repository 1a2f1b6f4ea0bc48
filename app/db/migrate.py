"""Bring a database to the tables of `models.py`. Safe to call from every process that starts."""

from pathlib import Path

from alembic import command
from alembic.config import Config

from app.db.engine import Database

MIGRATIONS = Path(__file__).parent.parent / "migrations"


def config(database: Database) -> Config:
    """Alembic's settings, made here: there is no alembic.ini, and no second place for the URL."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["database"] = database
    return config


def upgrade(url: str, revision: str = "head") -> None:
    """Migrate ``url`` up to ``revision``; of several processes one does it and the others wait."""
    database = Database(url)
    try:
        command.upgrade(config(database), revision)
    finally:
        database.close()


def downgrade(url: str, revision: str) -> None:
    """Back to ``revision``, for an older version. What it has no place for is dropped."""
    database = Database(url)
    try:
        command.downgrade(config(database), revision)
    finally:
        database.close()
