"""Engines and transactions. One `with` block, or one `await`, is one transaction.

The functions that do the work take a sync `Session` and never commit. The gateway runs them through
`AsyncDatabase`, the workers through `Database`; so each is written once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

P = ParamSpec("P")
R = TypeVar("R")

BUSY_TIMEOUT_MS = 20_000
"""How long a SQLite writer waits for another: transactions here last milliseconds, disks stall."""
POOL_SIZE = 5
"""Connections a process keeps; up to 10 more come and go (SQLAlchemy's own overflow)."""
_OPTIONS: dict[str, Any] = {
    "pool_size": POOL_SIZE,
    # A database that was restarted costs nobody an error.
    "pool_pre_ping": True,
    # Errors are logged, and users' URLs hold secrets.
    "hide_parameters": True,
}
WRITE = "reelsmith_write"
"""Execution option of a connection whose transaction will write."""

SYNC_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}
ASYNC_DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}


class UnsupportedDatabase(ValueError):
    """The URL names a database other than SQLite and PostgreSQL."""


def driver_url(url: str, drivers: dict[str, str]) -> URL:
    """``url`` with the driver this process needs, whichever driver it named.

    Raises:
        UnsupportedDatabase: neither SQLite nor PostgreSQL.
    """
    parsed = make_url(url)
    backend = {"postgres": "postgresql"}.get(parsed.get_backend_name(), parsed.get_backend_name())
    if backend not in drivers:
        raise UnsupportedDatabase(
            f"{backend!r} is not supported; give a sqlite:/// or postgresql:// URL"
        )
    url_for_driver = parsed.set(drivername=drivers[backend])
    if drivers[backend] == "postgresql+asyncpg" and "sslmode" in parsed.query:
        # asyncpg knows libpq's setting by another name.
        sslmode = parsed.query["sslmode"]
        return url_for_driver.difference_update_query(["sslmode"]).update_query_dict(
            {"ssl": sslmode}
        )
    return url_for_driver


class Database:
    """The database of a process without an event loop."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(driver_url(url, SYNC_DRIVERS), **_OPTIONS)
        _prepare(self.engine)
        self._writing = self.engine.execution_options(**{WRITE: True})

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction, committed at the block's end and rolled back when it raises."""
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads: on SQLite it waits for nobody."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()


class AsyncDatabase:
    """The gateway's database. Functions run in a transaction of their own."""

    def __init__(self, url: str) -> None:
        self.engine: AsyncEngine = create_async_engine(driver_url(url, ASYNC_DRIVERS), **_OPTIONS)
        _prepare(self.engine.sync_engine)
        self._writing = self.engine.execution_options(**{WRITE: True})

    async def write(
        self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run ``function(session, ...)`` and commit; its return value comes after the commit."""
        return await _run(self._writing, function, *args, **kwargs)

    async def read(
        self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `write`, for a function that only reads."""
        return await _run(self.engine, function, *args, **kwargs)

    async def close(self) -> None:
        await self.engine.dispose()


async def _run(
    engine: AsyncEngine,
    function: Callable[Concatenate[Session, P], R],
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    async with AsyncSession(engine, expire_on_commit=False) as session, session.begin():
        return await session.run_sync(function, *args, **kwargs)


def _prepare(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        return
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)


def _sqlite_connect(connection: Any, record: object) -> None:
    # The driver must begin no transaction by itself: it would, without IMMEDIATE, before writes.
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a request that was answered 200 survives a power cut.
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once when another wrote in between;
    # with IMMEDIATE it waits its turn at the beginning.
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
