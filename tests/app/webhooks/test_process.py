"""Gateways as processes that die (`fal-protocol.md` C42; `reliability.md` R12)."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from app.db.engine import Database
from app.dev import free_port
from tests.app.conftest import submit
from tests.app.webhooks import receiver as faults
from tests.app.webhooks.conftest import attempts, cancel, due, pending
from tests.app.webhooks.receiver import Receiver, receiving, status

BODY = {"training_data_url": "https://example.com/a.zip"}


class Process:
    """A gateway in ``folder``."""

    def __init__(self, folder: Path, receiver: Receiver) -> None:
        self.port = free_port()
        self.log = folder / "gateway.log"
        environment = {k: v for k, v in os.environ.items() if not k.startswith("REELSMITH_")}
        environment |= {
            "REELSMITH_DATA_DIR": str(folder),
            "REELSMITH_PORT": str(self.port),
            "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS": "127.0.0.1",
            "REELSMITH_WEBHOOK_EXTRA_PORTS": str(receiver.port),
        }
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve"],
                env=environment,
                stdout=log,
                stderr=log,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", trust_env=False)

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if self.http.get("/ready").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def kill(self, signal: int = signal.SIGKILL) -> int:
        if self._process.poll() is None:
            self._process.send_signal(signal)
        self.http.close()
        return self._process.wait(30)


@contextlib.contextmanager
def gateway(folder: Path, receiver: Receiver) -> Iterator[Process]:
    process = Process(folder, receiver)
    try:
        process.wait()
        yield process
    finally:
        process.kill()


def settled(database: Database, request_id: str) -> None:
    """Until its webhook is due no more."""
    deadline = time.monotonic() + 30
    while pending(database, request_id):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_kill_between_post_and_record_delivers_again(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'reelsmith.db'}")
    with receiving(faults.hang, status(200)) as receiver:
        with gateway(tmp_path, receiver) as process:
            reply = process.http.post("/t2v", params={"fal_webhook": receiver.url}, json=BODY)
            request = reply.json()
            path = httpx.URL(request["cancel_url"]).path
            assert process.http.put(path).status_code == 202
            receiver.wait_for(1)
            process.kill()
        due(database, request["request_id"])  # the lease has run out
        with gateway(tmp_path, receiver) as process:
            first, second = receiver.wait_for(2)
            settled(database, request["request_id"])
            process.http.get("/ready")
        assert len(receiver.received) == 2
    assert first.body == second.body
    assert first.json["request_id"] == request["request_id"]
    assert [a.status for a in attempts(database, request["request_id"])] == [None, 200]
    database.close()


def test_what_ends_while_no_gateway_runs_is_told_by_the_next(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'reelsmith.db'}")
    with receiving() as receiver:
        with gateway(tmp_path, receiver):
            pass
        waiting = submit(database, webhook_url=receiver.url)
        ended = [cancel(database, receiver.url) for _ in range(3)]
        with gateway(tmp_path, receiver), gateway(tmp_path, receiver):
            receiver.wait_for(3)
            for request_id in ended:
                settled(database, request_id)
        assert sorted(got.json["request_id"] for got in receiver.received) == sorted(ended)
    assert attempts(database, waiting) == []
    database.close()


def test_a_gateway_that_is_told_to_stop_finishes_its_deliveries(tmp_path: Path) -> None:
    def slow(handler: faults.Handler) -> None:
        handler.receiver.closing.wait(0.5)
        status(200)(handler)

    database = Database(f"sqlite:///{tmp_path / 'reelsmith.db'}")
    with receiving(slow) as receiver, gateway(tmp_path, receiver) as process:
        request_id = cancel(database, receiver.url)
        receiver.wait_for(1)
        assert process.kill(signal.SIGTERM) in (0, -signal.SIGTERM)
    assert not pending(database, request_id)
    database.close()
