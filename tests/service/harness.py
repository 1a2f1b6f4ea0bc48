"""The real service as processes, and the little a test needs to use it."""

import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.broker import Choice
from app.client.service import Service as Client
from app.client.upload import upload as upload_to
from app.dev import Child, Service, free_port
from app.settings import Settings

SMALL = {
    "rank": 8,
    "number_of_steps": 100,
    "learning_rate": 0.001,
    "number_of_frames": 9,
    "resolution": "low",
    "aspect_ratio": "16:9",
    "validation_number_of_frames": 9,
    "validation_resolution": "low",
    "validation_aspect_ratio": "16:9",
}
"""A request that the tiny model trains in seconds."""

FAST = {
    "REELSMITH_LEASE_S": "6",
    "REELSMITH_HEARTBEAT_S": "1",
    "REELSMITH_REAPER_INTERVAL_S": "1",
    "REELSMITH_CHECKPOINT_EVERY": "10",
    "REELSMITH_PREVIEW_STEPS": "3",
}
"""Times that let a test see a lease run out; previews of noise need no thirty steps."""


class Stack:
    """A running service and a client of it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.http = httpx.Client(base_url=service.url, timeout=60.0, trust_env=False)

    @property
    def gpu_worker(self) -> Child:
        return self.service.children[2]

    def submit(self, archive: Path, mode: str = "t2v", **fields: Any) -> dict[str, Any]:
        body = {**SMALL, "training_data_url": upload(self.http, archive), **fields}
        response = self.http.post(f"/{mode}", json=body)
        assert response.status_code == 200, response.text
        return dict(response.json())

    def status(self, request: dict[str, Any], logs: bool = False) -> dict[str, Any]:
        response = self.http.get(request["status_url"], params={"logs": int(logs)})
        assert response.status_code in (200, 202), response.text
        return dict(response.json())

    def log(self, request: dict[str, Any]) -> str:
        return "\n".join(line["message"] for line in self.status(request, logs=True)["logs"])

    def events(self, request: dict[str, Any], kind: str | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after = 0
        while True:
            response = self.http.get(request["response_url"] + "/events", params={"after": after})
            assert response.status_code == 200, response.text
            page = response.json()["events"]
            if not page:
                return [event for event in found if kind in (None, event["kind"])]
            found += page
            after = page[-1]["id"]

    def wait(self, request: dict[str, Any], limit_s: float = 150.0) -> httpx.Response:
        """Until it is COMPLETED; returns the result's response."""
        self.until(lambda: self.status(request)["status"] == "COMPLETED", limit_s, request)
        return self.http.get(request["response_url"])

    def wait_for_step(self, request: dict[str, Any], step: int) -> int:
        """Until a training step was reported; returns the newest one."""
        newest = 0

        def reached() -> bool:
            nonlocal newest
            newest = max((e["data"]["step"] for e in self.events(request, "step")), default=0)
            return newest >= step

        self.until(reached, 90.0, request)
        return newest

    def until(self, condition: Any, limit_s: float, request: dict[str, Any]) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline:
                logs = self.service.settings.data_dir / "logs"
                tails = "\n".join(
                    f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}"
                    for path in sorted(logs.iterdir())
                )
                raise AssertionError(
                    f"not within {limit_s} s: {self.status(request)}\n{self.log(request)}\n{tails}"
                )
            time.sleep(0.1)

    def attempts(self, request: dict[str, Any]) -> list[tuple[str, str | None]]:
        """(stage, outcome) of each attempt, oldest first."""
        from sqlalchemy import select

        from app.db.engine import Database
        from app.db.models import Attempt

        database = Database(self.service.settings.database_url)
        try:
            with database.read() as session:
                rows = session.scalars(
                    select(Attempt)
                    .where(Attempt.request_id == request["request_id"])
                    .order_by(Attempt.number)
                )
                return [(row.stage, row.outcome) for row in rows]
        finally:
            database.close()

    def download(self, file: dict[str, Any], to: Path) -> Path:
        response = self.http.get(file["url"])
        assert response.status_code == 200
        assert len(response.content) == file["file_size"]
        to.write_bytes(response.content)
        return to


def upload(http: httpx.Client, path: Path) -> str:
    """The URL of a file in the service's store."""
    with Client(str(http.base_url)) as client:
        return upload_to(client, path)


@contextmanager
def stack(
    data_dir: Path, broker: Choice = "files", model: str = "tiny", **env: str
) -> Iterator[Stack]:
    """A service in ``data_dir`` for the length of a block; nothing of it survives."""
    port = free_port()
    settings = Settings(
        data_dir=data_dir,
        port=port,
        public_url=f"http://127.0.0.1:{port}",
        broker=broker,
        model=model,
    )
    service = Service(settings, say=lambda _: None, extra_env={**FAST, **env})
    try:
        service.start()
        running = Stack(service)
        yield running
        running.http.close()
    finally:
        service.stop()
    assert processes_of(data_dir) == []


def kill_group(child: Child) -> None:
    """kill -9 the worker with everything it started, as a crashed machine would."""
    assert child.process is not None
    for pid in [child.process.pid, *descendants(child.process.pid)]:
        os.kill(pid, signal.SIGKILL)
    child.process.wait()


def descendants(pid: int) -> list[int]:
    found = []
    for line in subprocess.run(
        ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        child, parent = map(int, line.split())
        if parent == pid:
            found += [child, *descendants(child)]
    return found


def trainer_pid(child: Child, within_s: float = 0.0) -> int:
    """The trainer process below a gpu worker, which may yet have to start it."""
    assert child.process is not None
    deadline = time.monotonic() + within_s
    while True:
        for pid in descendants(child.process.pid):
            if b"trainer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        assert time.monotonic() < deadline, "no trainer below the worker"
        time.sleep(0.1)


def processes_of(data_dir: Path) -> list[str]:
    """Command lines of processes that still belong to the service in ``data_dir``."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"REELSMITH_DATA_DIR={data_dir.resolve()}\0".encode() in environ.read_bytes():
                command = (environ.parent / "cmdline").read_bytes().replace(b"\0", b" ")
                if command:
                    found.append(command.decode(errors="replace"))
        except OSError:
            continue  # gone meanwhile, or not ours to read
    return found


def zip_of(path: Path, *files: tuple[str, Path | str]) -> Path:
    """An archive of (name, file on disk or text)."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files:
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)
    return path
