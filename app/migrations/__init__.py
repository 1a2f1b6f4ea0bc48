"""Alembic migrations, run by `app.db.migrate`."""
