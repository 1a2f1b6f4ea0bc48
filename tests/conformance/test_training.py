"""On real trainings of the tiny model: C7-C9, C16, C21, C39, C42, C46, C48."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors import safe_open
from sqlalchemy import func, select

from app.db.engine import Database
from app.db.models import Request
from app.dev import Service, free_port
from app.settings import Settings
from tests.conformance.clients import JavaScript, Python
from tests.conformance.conftest import webhooks_to
from tests.conformance.gateway import ALICE, APP, T2V
from tests.conformance.receiver import Receiver
from tests.conformance.tls import Certificates
from tests.conformance.wire import wire
from tests.conftest import real_clip
from tests.service.harness import FAST, SMALL, kill_group, processes_of, trainer_pid, zip_of

pytestmark = pytest.mark.timeout(400)

TRAINED_WITHIN_S = 150.0
STOPS_WITHIN_S = 15.0
"""GPU work after a cancel: the step under way, and the worker's next look at the row."""


@dataclass
class Stack:
    """The whole service over TLS, and the clients of it."""

    service: Service
    http: httpx.Client
    python: Python
    js: JavaScript

    def status(self, request_id: str) -> dict[str, Any]:
        response = self.http.get(f"/{APP}/requests/{request_id}/status", params={"logs": 1})
        assert response.status_code in (200, 202), response.text
        return dict(response.json())

    def result(self, request_id: str) -> httpx.Response:
        return self.http.get(f"/{APP}/requests/{request_id}")

    def until_completed(self, request_id: str, limit_s: float = TRAINED_WITHIN_S) -> httpx.Response:
        deadline = time.monotonic() + limit_s
        while (status := self.status(request_id))["status"] != "COMPLETED":
            assert time.monotonic() < deadline, f"not within {limit_s} s: {status}"
            time.sleep(0.2)
        return self.result(request_id)

    def until_step(self, request_id: str, step: int) -> None:
        """Until the training has reported ``step``."""
        path = f"/{APP}/requests/{request_id}/events"
        deadline, after, newest = time.monotonic() + TRAINED_WITHIN_S, 0, 0
        while newest < step:
            assert time.monotonic() < deadline, self.status(request_id)
            page = self.http.get(path, params={"after": after}).json()
            after = page["after"]
            steps = [e["data"]["step"] for e in page["events"] if e["kind"] == "step"]
            newest = max(steps, default=newest)
            time.sleep(0.1)


@pytest.fixture(scope="module")
def stack(
    certificates: Certificates,
    receiver: Receiver,
    home: Path,
    node_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    port = free_port()
    settings = Settings(
        data_dir=tmp_path_factory.mktemp("stack"),
        port=port,
        public_url=f"https://localhost:{port}",
        tls_cert=certificates.cert,
        tls_key=certificates.key,
        broker="files",
    )
    env = {**FAST, **webhooks_to(receiver), "REELSMITH_API_KEYS": ALICE}
    service = Service(settings, say=lambda _: None, extra_env=env)
    try:
        service.start()
        with (
            wire(certificates, port) as (proxy, _, _),
            httpx.Client(
                base_url=service.url,
                verify=certificates.client(),
                headers={"Authorization": f"Key {ALICE}"},
                timeout=60.0,
                trust_env=False,
            ) as http,
        ):
            yield Stack(
                service,
                http,
                Python({"HTTPS_PROXY": proxy.url}, certificates.ca, home),
                JavaScript(node_folder, certificates.ca, service.url),
            )
    finally:
        service.stop()
    assert processes_of(settings.data_dir) == []


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real clips."""
    return zip_of(
        tmp_path_factory.mktemp("zips") / "clips.zip",
        ("bunny.mp4", real_clip("bigbuckbunny.mp4")),
        ("bunny.txt", "a rabbit in a meadow"),
        ("phone.mp4", real_clip("carphone_pristine.mp4")),
    )


@pytest.fixture(scope="module")
def data_url(stack: Stack, clips: Path) -> str:
    """The dataset, uploaded by the Python client."""
    url: str = stack.python("tell(fal_client.upload_file(given.path))", key=ALICE, path=str(clips))
    return url


@dataclass
class Trained:
    request_id: str
    updates: list[str]
    """Types of the statuses that `on_queue_update` got."""
    result: dict[str, Any]


@pytest.fixture(scope="module")
def trained(stack: Stack, data_url: str) -> Trained:
    """One training, by `fal_client.subscribe`."""
    client = stack.python.start(
        """
        seen = []
        result = fal_client.subscribe(
            given.app,
            given.body,
            with_logs=True,
            on_enqueue=tell,
            on_queue_update=lambda status: seen.append(type(status).__name__),
        )
        tell([seen, result])
        """,
        key=ALICE,
        app=T2V,
        body={**SMALL, "number_of_frames": 10, "training_data_url": data_url},
    )
    request_id, (updates, result) = client.end(TRAINED_WITHIN_S)
    return Trained(request_id, updates, result)


@pytest.fixture(scope="module")
def public(stack: Stack, certificates: Certificates) -> Iterator[httpx.Client]:
    """Without a key."""
    with httpx.Client(verify=certificates.client(), trust_env=False, timeout=30.0) as http:
        yield http


def test_c07_status_of_a_success(stack: Stack, trained: Trained) -> None:
    response = stack.http.get(f"/{APP}/requests/{trained.request_id}/status")
    assert response.status_code == 200
    status = response.json()
    assert status["status"] == "COMPLETED"
    assert isinstance(status["metrics"]["inference_time"], int | float)
    assert "error" not in status


def test_c08_python_subscribe(stack: Stack, trained: Trained) -> None:
    assert {"InProgress", "Completed"} <= set(trained.updates)
    assert without_grants(trained.result) == without_grants(stack.result(trained.request_id).json())


def without_grants(result: dict[str, Any]) -> dict[str, Any]:
    """Every reading of a result signs the URLs of its files anew."""
    return {
        name: {**file, "url": file["url"].rpartition("/")[2]} if file else file
        for name, file in result.items()
    }


def test_c09_javascript_result(stack: Stack, trained: Trained) -> None:
    found = stack.js(
        "tell(await fal.queue.result(given.app, { requestId: given.id }))",
        key=ALICE,
        app=T2V,
        id=trained.request_id,
    )
    assert found["requestId"] == trained.request_id
    assert without_grants(found["data"]) == without_grants(trained.result)


def test_c16_effective_number_of_frames(trained: Trained, public: httpx.Client) -> None:
    """10 were asked for."""
    config = public.get(trained.result["config_file"]["url"]).json()
    assert json.dumps(config["number_of_frames"]) == "9"


def test_c46_units_of_a_training(stack: Stack, trained: Trained) -> None:
    assert stack.result(trained.request_id).headers["x-fal-billable-units"] == "100"


def test_c48_output_files(trained: Trained, public: httpx.Client, tmp_path: Path) -> None:
    lora = trained.result["lora_file"]
    head = public.head(lora["url"], headers={"origin": "https://studio.example.com"})
    assert head.status_code == 200
    assert int(head.headers["content-length"]) == lora["file_size"]
    assert head.headers["access-control-allow-origin"] == "*"
    part = public.get(lora["url"], headers={"range": "bytes=8-15"})
    assert part.status_code == 206
    assert part.headers["content-range"] == f"bytes 8-15/{lora['file_size']}"
    whole = public.get(lora["url"]).content
    assert part.content == whole[8:16]
    assert len(whole) == lora["file_size"]
    assert lora["file_name"].endswith(".safetensors")
    path = tmp_path / lora["file_name"]
    path.write_bytes(whole)
    with safe_open(path, "pt") as tensors:
        assert any(name.endswith("lora_A.weight") for name in tensors.keys())  # noqa: SIM118


def test_c39_javascript_blob_as_dataset(stack: Stack, clips: Path, trained: Trained) -> None:
    """The client uploads it and sends its URL, and the training reads that."""
    request_id = stack.js(
        """
        const { openAsBlob } = await import("node:fs");
        const blob = await openAsBlob(given.path, { type: "application/zip" });
        const input = { ...given.body, training_data_url: blob };
        tell((await fal.queue.submit(given.app, { input })).request_id);
        """,
        key=ALICE,
        app=T2V,
        path=str(clips),
        body=SMALL,
    )
    assert stack.until_completed(request_id).status_code == 200


def test_c21_javascript_cancels_a_running_training(
    stack: Stack, data_url: str, trained: Trained
) -> None:
    request_id = submitted(stack, data_url, number_of_steps=20_000)
    stack.until_step(request_id, 5)
    worker = stack.service.children[2]
    assert trainer_pid(worker)
    told = stack.js(
        """
        const before = performance.now();
        await fal.queue.cancel(given.app, { requestId: given.id });
        tell((performance.now() - before) / 1000);
        """,
        key=ALICE,
        app=T2V,
        id=request_id,
    )
    assert told < 5
    response = stack.until_completed(request_id, STOPS_WITHIN_S)
    assert response.status_code == 499
    assert stack.status(request_id)["error_type"] == "client_cancelled"
    # The worker is free: the next one trains.
    after = submitted(stack, data_url)
    assert stack.until_completed(after).status_code == 200


def test_c42_kill_9_and_restart(stack: Stack, data_url: str, receiver: Receiver) -> None:
    """Gateway and workers at once, as when the machine goes away."""
    urls = [receiver.url(f"/restart/{number}") for number in range(4)]
    ids = [submitted(stack, data_url, url) for url in urls]
    stack.until_step(ids[0], 20)
    for child in stack.service.children:
        kill_group(child)
    with pytest.raises(httpx.TransportError):
        stack.status(ids[0])
    for child in stack.service.children:
        child.start(stack.service.env)
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(httpx.TransportError):
            if stack.http.get("/ready").status_code == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {stack.status(request_id)["request_id"] for request_id in ids} == set(ids)
    # Two are trained; cancelling is an end as well, and takes less time.
    for request_id in ids[2:]:
        assert stack.http.put(f"/{APP}/requests/{request_id}/cancel").status_code == 202
    for request_id, status in zip(ids, (200, 200, 499, 499), strict=True):
        assert stack.until_completed(request_id).status_code == status
    log = "\n".join(line["message"] for line in stack.status(ids[0])["logs"])
    assert "The worker was lost" in log
    assert_stored_once(stack, ids)
    for request_id, number in zip(ids, range(4), strict=True):
        (delivery,) = receiver.wait(f"/restart/{number}", 1, 30)
        assert json.loads(delivery.body)["request_id"] == request_id


def assert_stored_once(stack: Stack, ids: list[str]) -> None:
    """No request was doubled on the way."""
    with (
        contextlib.closing(Database(stack.service.settings.database_url)) as database,
        database.read() as session,
    ):
        number = session.scalar(
            select(func.count()).select_from(Request).where(Request.webhook_url.is_not(None))
        )
    assert number == len(ids)


def submitted(stack: Stack, data_url: str, webhook: str | None = None, **fields: Any) -> str:
    response = stack.http.post(
        f"/{T2V}",
        params={} if webhook is None else {"fal_webhook": webhook},
        json={**SMALL, "training_data_url": data_url, **fields},
    )
    assert response.status_code == 200, response.text
    request_id: str = response.json()["request_id"]
    return request_id
