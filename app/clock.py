"""Time as everybody agrees on it: seconds since 1970 by the database's clock.

Hosts' clocks differ and jump; leases, deadlines and the order of requests are all reckoned where
the rows are. Inside a process, waiting is measured with ``time.monotonic``.
"""

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

DAY_S: Final = 24 * 3600


class db_now(FunctionElement[float]):
    """The database's time in epoch seconds, as a column expression (`float`, about 1 ms fine)."""

    type = Float()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite(element: db_now, compiler: Any, **kw: Any) -> str:
    # unixepoch('subsec') needs SQLite 3.42, which Debian 12 does not have; 2440587.5 is the
    # Julian day of 1970-01-01T00:00Z.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql(element: db_now, compiler: Any, **kw: Any) -> str:
    # Not now(): that is when the transaction began.
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


def iso8601(epoch_s: float) -> str:
    """A timestamp as fal's log lines have it: UTC, six decimals, ``Z``."""
    return datetime.fromtimestamp(epoch_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
