"""Whether this container's worker can do its work: it runs, and database and broker answer.

Celery's own `inspect ping` needs remote control, which is off: nothing outside may steer a worker.
Exits 0 when healthy; anything else is an exception with its reason.
"""

import sys
from pathlib import Path

from kombu import Connection
from sqlalchemy import create_engine, text

from app.db.engine import driver_url
from app.settings import Settings

BROKER_TIMEOUT_S = 5
WORKER = b"workers.celery_app"


def main() -> None:
    """Check the process, then what it depends on."""
    if not any(WORKER in _command_line(path) for path in Path("/proc").glob("[0-9]*")):
        sys.exit("no worker process")
    settings = Settings()
    engine = create_engine(driver_url(settings.database_url))
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    engine.dispose()
    if settings.redis_url is not None:
        with Connection(settings.redis_url.get_secret_value()) as broker:
            broker.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT_S)


def _command_line(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""  # it has just ended


if __name__ == "__main__":
    main()
