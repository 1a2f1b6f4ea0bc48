"""The gateway as a process that speaks HTTPS, and a worker's part of a request's life.

The worker's part is played by the test: it changes rows by the calls that workers make
(`app.requests.lifecycle`), on the gateway's database. What a request looks like from outside at
each moment is then certain, and takes no training.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select, update

from app import modes
from app.clock import db_now
from app.db.engine import Database
from app.db.models import Request, Stage, State
from app.dev import free_port
from app.requests import lifecycle
from app.requests.lifecycle import Claim, Log
from app.settings import Settings
from app.storage import make_storage
from tests.conformance.tls import Certificates
from workers.failures import Failure
from workers.files import file_entry

ALICE = "alice:secret"
"""A key as fal makes them, an id and a secret: for the server one opaque text."""
BOB = "bob"

APP = "fal-ai/ltx23-trainer-v2"
T2V = f"{APP}/t2v"
OUTPAINT = f"{APP}/outpaint"

VALID: dict[str, Any] = {"training_data_url": "https://example.com/clips.zip"}
VALID_OUTPAINT: dict[str, Any] = {
    **VALID,
    "crop_top_left": [128, 128],
    "crop_bottom_right": [640, 640],
}

START_TIMEOUT_S = 60.0
LEASE_S = 600.0
"""Longer than any test: no lease of the test's own claims runs out."""


class Gateway:
    """A gateway in ``folder``. `start` and `kill` may alternate: the folder stays."""

    def __init__(
        self,
        folder: Path,
        certificates: Certificates,
        env: Mapping[str, str],
        command: tuple[str, ...] = ("-m", "app.cli", "serve"),
    ) -> None:
        port = free_port()
        self._command = command
        self._env = {
            **{n: v for n, v in os.environ.items() if not n.startswith("REELSMITH_")},
            "REELSMITH_DATA_DIR": str(folder),
            "REELSMITH_PORT": str(port),
            "REELSMITH_PUBLIC_URL": f"https://localhost:{port}",
            "REELSMITH_TLS_CERT": str(certificates.cert),
            "REELSMITH_TLS_KEY": str(certificates.key),
            "REELSMITH_API_KEYS": f"{ALICE},{BOB}",
            "REELSMITH_REAPER_INTERVAL_S": "0.5",
            **env,
        }
        self.certificates = certificates
        self.log_file = folder / "gateway.log"
        self.settings = Settings(
            data_dir=folder, port=port, public_url=self._env["REELSMITH_PUBLIC_URL"]
        )
        self.storage = make_storage(self.settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.settings.public_url

    def start(self) -> None:
        """Returns once it answers."""
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._command],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        with self.http(None) as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/ready").status_code == 200:
                        return
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise AssertionError(f"it did not start:\n{self.log_file.read_text()[-3000:]}")
                time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def http(self, key: str | None = ALICE, scheme: str = "Key") -> httpx.Client:
        """Raw HTTP, with a key."""
        return httpx.Client(
            base_url=self.url,
            verify=self.certificates.client(),
            headers={} if key is None else {"Authorization": f"{scheme} {key}"},
            timeout=30.0,
            trust_env=False,
        )

    def logged(self, **fields: Any) -> list[dict[str, Any]]:
        """The log's lines that have all these values."""
        lines = [json.loads(line) for line in self.log_file.read_text().splitlines()]
        return [line for line in lines if all(line.get(n) == v for n, v in fields.items())]


@contextlib.contextmanager
def running(
    folder: Path,
    certificates: Certificates,
    command: tuple[str, ...] = ("-m", "app.cli", "serve"),
    **env: str,
) -> Iterator[Gateway]:
    """A gateway for the length of a block."""
    gateway = Gateway(folder, certificates, env, command)
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


class Job:
    """A request that a worker has claimed for training."""

    def __init__(self, worker: "Worker", claim: Claim) -> None:
        self._worker = worker
        self.claim = claim

    @property
    def request_id(self) -> str:
        return self.claim.request_id

    def say(self, *messages: str) -> None:
        lines = [Log(message) for message in messages]
        with self._worker.database.write() as session:
            lifecycle.progress(session, self.claim, logs=lines)

    @property
    def cancel_requested(self) -> bool:
        with self._worker.database.write() as session:
            return lifecycle.renew(session, self.claim, LEASE_S).cancel_requested

    def complete(self) -> None:
        """With files in the store, and billed as its mode says."""
        gateway = self._worker.gateway
        body: dict[str, Any] = {"video": None, "debug_dataset": None}
        for field, name, content_type in (
            ("lora_file", "lora.safetensors", "application/octet-stream"),
            ("config_file", "config.json", "application/json"),
        ):
            path = gateway.settings.data_dir / f"{self.request_id}-{name}"
            path.write_text(json.dumps({"of": self.request_id}))
            key = f"{self.claim.storage_prefix}/outputs/{self.claim.attempt}/{name}"
            stored = gateway.storage.put_file(key, path, content_type=content_type)
            body[field] = file_entry(stored, name)
        mode = modes.by_path(self.claim.mode)
        units = mode.billable_units(mode.parse(self.claim.input))
        with self._worker.database.write() as session:
            lifecycle.complete(session, self.claim, body, units, inference_time=12.5)

    def fail(self, failure: Failure) -> None:
        with self._worker.database.write() as session:
            lifecycle.fail(
                session,
                self.claim,
                status=failure.status,
                body=failure.body,
                error=failure.error,
                error_type=failure.error_type,
                retryable=failure.retryable,
            )

    def stop(self) -> None:
        """As a worker does when its user wants the end."""
        with self._worker.database.write() as session:
            lifecycle.cancelled(session, self.claim)


class Worker:
    """Claims as both kinds of workers do, on a gateway's database."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.database = Database(gateway.settings.database_url)

    def next(self) -> Job:
        """The next request of the queue, prepared and claimed for training."""
        with self.database.write() as session:
            claim = lifecycle.claim(session, Stage.PREPARE, "a worker", LEASE_S)
            assert claim is not None, "nothing waits"
            lifecycle.advance(session, claim, {"key": "prepared/by-the-test"})
        with self.database.write() as session:
            training = lifecycle.claim(session, Stage.TRAIN, "a worker", LEASE_S)
            assert training is not None
        assert training.request_id == claim.request_id
        return Job(self, training)

    def run(self, request_id: str) -> Job:
        """`next`, which must be this request."""
        job = self.next()
        assert job.request_id == request_id
        return job

    def row(self, request_id: str) -> Request:
        with self.database.read() as session:
            return session.scalars(select(Request).where(Request.id == request_id)).one()

    def rows(self) -> list[Request]:
        with self.database.read() as session:
            return list(session.scalars(select(Request).order_by(Request.number)))

    def later(self, request_id: str, seconds: float) -> None:
        """Let time pass for an ended request: everything in it happened ``seconds`` earlier."""
        with self.database.write() as session:
            session.execute(
                update(Request)
                .where(Request.id == request_id)
                .values(
                    created_at=Request.created_at - seconds,
                    started_at=Request.started_at - seconds,
                    finished_at=db_now() - seconds,
                )
            )

    def clear(self) -> None:
        """End what a test left open, so that the next one finds an empty queue."""
        with self.database.write() as session:
            for row in session.scalars(select(Request).where(Request.state != State.COMPLETED)):
                lifecycle.finish_cancelled(row)

    def close(self) -> None:
        self.database.close()


def submit(http: httpx.Client, path: str = "t2v", **fields: Any) -> dict[str, Any]:
    """By raw HTTP; returns the reply's body."""
    response = http.post(f"/{path}", json={**VALID, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())
