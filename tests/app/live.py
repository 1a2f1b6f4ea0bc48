"""A gateway behind a real server in this process, for what only a connection shows."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.db.engine import Database
from app.db.models import Stage
from app.dev import free_port
from app.gateway import create_app
from app.requests import lifecycle
from app.requests.lifecycle import Claim
from app.requests.watch import Watcher
from app.server import Server, configured
from app.settings import Settings


class Live:
    """``http`` asks it; ``stop`` is what a signal does."""

    def __init__(self, settings: Settings) -> None:
        app = create_app(settings, send=lambda queue: None)
        self.settings = settings
        self.database = Database(settings.database_url)
        self.watcher: Watcher = app.state.watcher
        self.server: Server = configured(app, "127.0.0.1", settings.port)
        self.thread = threading.Thread(target=self.server.run)
        self.http = httpx.Client(base_url=settings.public_url, timeout=30.0, trust_env=False)

    def claimed(self, stage: Stage = Stage.PREPARE) -> Claim:
        """The next request. Tried again while the gateway holds its row to note a wake-up."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with self.database.write() as session:
                if held := lifecycle.claim(session, stage, "worker"):
                    return held
            time.sleep(0.01)
        raise AssertionError("there is nothing to claim")

    def stop(self) -> None:
        self.server.should_exit = True

    def stopped(self, timeout_s: float) -> bool:
        self.thread.join(timeout_s)
        return not self.thread.is_alive()


@contextmanager
def live(data_dir: Path, **settings: Any) -> Iterator[Live]:
    """A running gateway for the length of a block."""
    port = free_port()
    gateway = Live(Settings(data_dir=data_dir, port=port, log_level="ERROR", **settings))
    gateway.thread.start()
    try:
        while not gateway.server.started:
            gateway.thread.join(0.02)
            assert gateway.thread.is_alive(), "the server ended"
        yield gateway
    finally:
        gateway.stop()
        gateway.http.close()
        gateway.thread.join()
        gateway.database.close()
