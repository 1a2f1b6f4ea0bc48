"""Alembic's entry: one transaction for all steps, one process at a time."""

from alembic import context
from sqlalchemy import text

from app.db.engine import WRITE, Database
from app.db.models import Base

MIGRATION_LOCK = 0x7265656C
"""PostgreSQL advisory lock ("reel"); on SQLite the write transaction is the lock."""


def run() -> None:
    database: Database = context.config.attributes["database"]
    engine = database.engine.execution_options(**{WRITE: True})
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(
                text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK}
            )
        context.configure(
            connection=connection, target_metadata=Base.metadata, render_as_batch=True
        )
        context.run_migrations()


run()
