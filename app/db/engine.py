"""Engines and transactions. One `with` block, or one `await`, is one transaction.

The functions that do the work take a sync `Session` and never commit. The gateway runs them through
`AsyncDatabase`, the workers through `Database`; so each is written once.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.orm import Session

from app.db.types import dump_json

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

BUSY_TIMEOUT_MS = 20_000
"""How long a SQLite writer waits for another: transactions here last milliseconds, disks stall."""
POOL_SIZE = 5
"""Connections a process keeps; up to 10 more come and go (SQLAlchemy's own overflow)."""
_OPTIONS: dict[str, Any] = {
    "pool_size": POOL_SIZE,
    "json_serializer": dump_json,
    # Errors are logged, and users' URLs hold secrets.
    "hide_parameters": True,
}
WRITE = "reelsmith_write"
"""Execution option of a connection whose transaction will write."""

READERS = 4
"""Threads that read for the gateway: a slow page of events holds up no status."""
WRITES_PER_COMMIT = 64
"""Enough to make the commit's cost small; the first of them waits for the last."""

DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


class UnsupportedDatabase(ValueError):
    """The URL names a database other than SQLite and PostgreSQL."""


def driver_url(url: str) -> URL:
    """``url`` with the driver that is used here, whichever driver it named.

    Raises:
        UnsupportedDatabase: neither SQLite nor PostgreSQL, or no URL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # without the URL, which may hold a password
        raise UnsupportedDatabase("this is no URL of a database") from None
    backend = {"postgres": "postgresql"}.get(parsed.get_backend_name(), parsed.get_backend_name())
    if backend not in DRIVERS:
        raise UnsupportedDatabase(
            f"{backend!r} is not supported; give a sqlite:/// or postgresql:// URL"
        )
    return parsed.set(drivername=DRIVERS[backend])


class Database:
    """The database of a process without an event loop."""

    def __init__(self, url: str) -> None:
        target = driver_url(url)
        # A server that was restarted costs nobody an error; a file does not go away.
        is_server = target.get_backend_name() != "sqlite"
        self.engine = create_engine(target, pool_pre_ping=is_server, **_OPTIONS)
        _prepare(self.engine)
        self._writing = self.engine.execution_options(**{WRITE: True})

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction, committed at the block's end and rolled back when it raises."""
        with self.session_to_write() as session, session.begin():
            yield session

    def session_to_write(self) -> Session:
        """A session whose transaction, not begun yet, will write."""
        return Session(self._writing, expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads: on SQLite it waits for nobody."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def connect_to_write(self) -> Iterator[Connection]:
        """The same for several sessions that share the transaction."""
        with self._writing.begin() as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()


class AsyncDatabase:
    """The gateway's database. Functions run in threads, each in a transaction of its own.

    Writes that wait for each other are committed together: each in a savepoint, all with one
    commit. A disk that syncs two hundred times a second then takes a thousand submits.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        # A connection of its own: SQLite's page cache is one connection's, and what it wrote last
        # is what it writes to next.
        self._written = Database(url)
        self._readers = ThreadPoolExecutor(READERS, "database-read")
        self._writer = ThreadPoolExecutor(1, "database-write")
        self._waiting: deque[_Write] = deque()
        self._draining: asyncio.Task[None] | None = None

    async def write(
        self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Run ``function(session, ...)`` and commit; its return value comes after the commit."""

        def each(session: Session, items: Sequence[None]) -> list[R | Exception]:
            return [function(session, *args, **kwargs) for _ in items]

        return await self._write(each, None)

    async def write_together(
        self, function: Callable[[Session, Sequence[T]], Sequence[R | Exception]], item: T
    ) -> R:
        """As `write`, where many calls cost little more than one: ``function(session, items)`` is
        called once for all items that wait, and returns a result, or what to raise, for each.

        It is called again with fewer items where the database refuses them together.
        """
        return await self._write(function, item)

    async def _write(
        self, function: Callable[[Session, Sequence[T]], Sequence[R | Exception]], item: T
    ) -> R:
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Write(function, item, future))
        if self._draining is None or self._draining.done():
            self._draining = asyncio.create_task(self._drain())
        return await future

    async def read(
        self, function: Callable[Concatenate[Session, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As `write`, for a function that only reads; several run at once."""

        def reading() -> R:
            with self._database.read() as session:
                return function(session, *args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._readers, reading)

    async def close(self) -> None:
        if self._draining is not None:
            await asyncio.gather(self._draining, return_exceptions=True)
        self._writer.shutdown()
        self._readers.shutdown()
        self._database.close()
        self._written.close()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch = [
                self._waiting.popleft() for _ in range(min(len(self._waiting), WRITES_PER_COMMIT))
            ]
            # Who has left does not want it any more.
            batch = [write for write in batch if not write.future.cancelled()]
            try:
                await loop.run_in_executor(self._writer, self._commit, batch)
            except BaseException as error:
                for write in batch:
                    write.outcome = error
                raise
            finally:
                for write in batch:
                    write.tell()

    def _commit(self, batch: "list[_Write]") -> None:
        groups: dict[Any, list[_Write]] = {}
        for write in batch:
            groups.setdefault(write.function, []).append(write)
        if len(batch) > 1:
            try:
                self._commit_groups(list(groups.values()))
                return
            except SQLAlchemyError:
                # The commit failed, or a deadlock took the whole transaction with it: nothing of
                # it is there. Each by itself then, so that it gets its own answer.
                pass
        for write in batch:
            try:
                self._commit_groups([[write]])
            except SQLAlchemyError as error:
                write.outcome = error

    def _commit_groups(self, groups: "list[list[_Write]]") -> None:
        """In one transaction, each group in a savepoint. Raises `SQLAlchemyError`."""
        if len(groups) == 1:  # as usual in a burst of submits: it needs none
            with self._written.session_to_write() as session:
                _run(session, groups[0])
            return
        with self._written.connect_to_write() as connection:
            for group in groups:
                joined = Session(
                    connection, expire_on_commit=False, join_transaction_mode="create_savepoint"
                )
                with joined as session:
                    _run(session, group)


@dataclass
class _Write:
    """A call that waits for its transaction, and what came of it."""

    function: Callable[[Session, Sequence[Any]], Sequence[Any]]
    item: Any
    future: "asyncio.Future[Any]"
    outcome: Any = None
    """What it returned, or what is to be raised."""

    def tell(self) -> None:
        if self.future.done():
            return
        if isinstance(self.outcome, BaseException):
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.outcome)


def _run(session: Session, group: list[_Write]) -> None:
    """One call for all of ``group``. Raises `SQLAlchemyError`; other errors are outcomes."""
    try:
        with session.begin():
            outcomes = group[0].function(session, [write.item for write in group])
    except SQLAlchemyError:
        raise
    except Exception as error:  # the function's own answer, such as "unknown request"
        outcomes = [error] * len(group)
    for write, outcome in zip(group, outcomes, strict=True):
        write.outcome = outcome


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
