"""A database for one stack: a SQLite file, or one of its own on a PostgreSQL server."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from tests.faults.wire import Wire, wire


@contextlib.contextmanager
def fresh_database(folder: Path, server: str | None) -> Iterator[tuple[str, Wire | None]]:
    """(URL, the wire that the service goes through); on SQLite there is nothing to cut."""
    if server is None:
        yield f"sqlite:///{folder.resolve() / 'data' / 'reelsmith.db'}", None
        return
    name = f"faults_{uuid.uuid4().hex[:12]}"
    at = make_url(server).set(drivername="postgresql")
    plain = at.render_as_string(hide_password=False)
    _run(plain, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        with wire(at.port or 5432) as line:
            mine = at.set(database=name, host="127.0.0.1", port=at.port or 5432)
            yield mine.render_as_string(hide_password=False), line
    finally:
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
        _run(plain, drop)


def _run(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
