"""fal's queue over HTTP: submit, status, result, cancel (`fal-protocol.md` 1, 2, 4b, C1 to C50)."""

import re
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from app import modes
from app.db.models import Stage
from app.requests import lifecycle, reaper
from app.requests.lifecycle import Happened, Log
from app.settings import Settings
from tests.app.conftest import LOW, OWNER, Gateway, put, row, running, submit
from tests.app.test_lifecycle import claimed, do, expire

BODY = {"training_data_url": "https://example.com/a.zip"}
APP = "fal-ai/ltx23-trainer-v2"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def finish(gateway: Gateway, body: dict[str, Any], units: int = 100) -> str:
    """A request that ended well with ``body``."""
    request_id = submit(gateway.database)
    do(gateway.database, lifecycle.advance, claimed(gateway.database), {})
    train = claimed(gateway.database, Stage.TRAIN)
    do(gateway.database, lifecycle.complete, train, body, units, 12.5)
    return request_id


@pytest.mark.parametrize("mode", modes.all(), ids=lambda mode: mode.path)
@pytest.mark.parametrize("form", ["/{path}", "/{id}", "/{path}/", "/{id}/"])
def test_submit(gateway: Gateway, mode: Any, form: str) -> None:
    path = form.format(path=mode.path, id=mode.id)
    body = mode.request_model.model_config["json_schema_extra"]["examples"][0]
    reply = gateway.client.post(path, json=body, follow_redirects=False)
    assert reply.status_code == 200
    answer = reply.json()
    request_id = answer["request_id"]
    assert UUID.fullmatch(request_id)
    assert reply.headers["x-fal-request-id"] == request_id
    base = f"{gateway.settings.public_url}/{mode.app}/requests/{request_id}"
    assert answer == {
        "request_id": request_id,
        "gateway_request_id": request_id,
        "status": "IN_QUEUE",
        "queue_position": 0,
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
    }
    stored = row(gateway.database, request_id)
    assert (stored.endpoint, stored.app, stored.mode) == (mode.id, mode.app, mode.path)
    assert stored.owner == OWNER
    assert mode.parse(stored.input) == mode.request_model.model_validate(body)


@pytest.mark.parametrize("prefix", [APP, f"{APP}/t2v", "t2v"])
@pytest.mark.parametrize("slash", ["", "/"])
def test_every_form_of_a_requests_urls(gateway: Gateway, prefix: str, slash: str) -> None:
    base = f"/{prefix}/requests/{finish(gateway, {'x': 1})}"
    for path in (f"{base}/status", base, f"{base}/response"):
        reply = gateway.client.get(path + slash, follow_redirects=False)
        assert reply.status_code == 200, path


def test_a_queued_request(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    reply = gateway.client.get(request["status_url"])
    assert reply.status_code == 202
    assert reply.headers["x-fal-request-id"] == request["request_id"]
    del request["gateway_request_id"]
    assert reply.json() == {**request, "logs": None, "metrics": {}}


def test_a_running_request(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    held = claimed(gateway.database)
    do(gateway.database, lifecycle.progress, held, logs=[Log("step 1"), Log("careful", "WARN")])
    reply = gateway.client.get(request["status_url"], params={"logs": "true"})
    assert reply.status_code == 202
    status = reply.json()
    assert status["status"] == "IN_PROGRESS"
    assert "queue_position" not in status
    assert "error" not in status
    assert [(line["message"], line["level"]) for line in status["logs"]] == [
        ("step 1", "INFO"),
        ("careful", "WARN"),
    ]
    assert all(line["source"] == "USER" for line in status["logs"])
    timestamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert all(re.fullmatch(timestamp, line["timestamp"]) for line in status["logs"])
    pending = gateway.client.get(request["response_url"])
    assert (pending.status_code, pending.json()["detail"]) == (400, "Request is still in progress")


@pytest.mark.parametrize(
    ("asked", "given"),
    [("1", True), ("true", True), ("True", True), ("0", False), ("false", False), (None, False)],
)
def test_logs_when_asked_for(gateway: Gateway, asked: str | None, given: bool) -> None:
    status_url = gateway.client.post("/t2v", json=BODY).json()["status_url"]
    params = {} if asked is None else {"logs": asked}
    logs = gateway.client.get(status_url, params=params).json()["logs"]
    assert logs == ([] if given else None)


def test_positions_come_from_the_rows(gateway: Gateway) -> None:
    low = submit(gateway.database, **LOW)
    first, second = submit(gateway.database), submit(gateway.database)

    def positions() -> list[int | None]:
        return [
            gateway.client.get(f"/t2v/requests/{request_id}/status").json().get("queue_position")
            for request_id in (first, second, low)
        ]

    assert positions() == [0, 1, 2]
    claimed(gateway.database)
    assert positions() == [None, 0, 1]


def test_a_finished_request(gateway: Gateway) -> None:
    request_id = finish(gateway, {"note": "done"}, units=2000)
    status = gateway.client.get(f"/{APP}/requests/{request_id}/status")
    assert status.status_code == 200
    assert status.json()["status"] == "COMPLETED"
    assert status.json()["metrics"] == {"inference_time": 12.5}
    assert "error" not in status.json()
    result = gateway.client.get(f"/{APP}/requests/{request_id}")
    assert (result.status_code, result.json()) == (200, {"note": "done"})
    assert result.headers["x-fal-request-id"] == request_id
    assert result.headers["x-fal-billable-units"] == "2000"
    assert result.headers["content-type"] == "application/json"


def test_results_carry_urls_that_open(gateway: Gateway) -> None:
    storage_file = gateway.settings.data_dir / "lora.safetensors"
    storage_file.write_bytes(b"weights")
    stored = gateway.storage.put_file("requests/x/outputs/1/lora.safetensors", storage_file)
    file = {
        "key": stored.key,
        "file_name": "lora.safetensors",
        "content_type": "application/octet-stream",
        "file_size": 7,
    }
    request_id = finish(gateway, {"lora_file": file, "video": None, "many": [file]})
    result = gateway.client.get(f"/{APP}/requests/{request_id}").json()
    assert set(result["lora_file"]) == {"url", "content_type", "file_name", "file_size"}
    assert result["video"] is None
    for url in (result["lora_file"]["url"], result["many"][0]["url"]):
        assert gateway.client.get(url).content == b"weights"


def test_a_users_failure_is_replayed(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    body = {"detail": [{"loc": ["body", "training_data_url"], "msg": "bad zip", "type": "x"}]}
    do(
        gateway.database,
        lifecycle.fail,
        claimed(gateway.database),
        status=422,
        body=body,
        error="bad zip",
        error_type="invalid_archive",
        retryable=False,
    )
    status = gateway.client.get(request["status_url"]).json()
    assert (status["status"], status["error"]) == ("COMPLETED", "bad zip")
    assert status["error_type"] == "invalid_archive"
    assert isinstance(status["metrics"]["inference_time"], float)
    result = gateway.client.get(request["response_url"])
    assert (result.status_code, result.json()) == (422, body)
    assert result.headers["x-fal-billable-units"] == "0"
    assert result.headers["x-fal-retryable"] == "false"
    assert "x-fal-error-type" not in result.headers


def test_cancel(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    first = gateway.client.put(request["cancel_url"])
    assert (first.status_code, first.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    status = gateway.client.get(request["status_url"])
    assert (status.status_code, status.json()["status"]) == (200, "COMPLETED")
    assert status.json()["error_type"] == "client_cancelled"
    result = gateway.client.get(request["response_url"])
    assert result.status_code == 499
    assert result.json() == {
        "detail": "Request cancelled by the client.",
        "error_type": "client_cancelled",
    }
    assert result.headers["x-fal-error-type"] == "client_cancelled"
    again = gateway.client.put(request["cancel_url"])
    assert (again.status_code, again.json()) == (400, {"status": "ALREADY_COMPLETED"})


def test_cancel_while_running(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    held = claimed(gateway.database)
    assert gateway.client.put(request["cancel_url"]).status_code == 202
    assert gateway.client.get(request["status_url"]).json()["status"] == "IN_PROGRESS"
    do(gateway.database, lifecycle.cancelled, held)
    assert gateway.client.get(request["response_url"]).status_code == 499


def test_a_lost_request_says_so(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY, headers={"x-fal-no-retry": "1"}).json()
    expire(gateway.database, claimed(gateway.database))
    do(gateway.database, reaper.reap)
    result = gateway.client.get(request["response_url"])
    assert result.status_code == 500
    assert result.headers["x-fal-error-type"] == "runner_server_error"
    assert "worker was lost" in result.json()["detail"]
    logs = gateway.client.get(request["status_url"], params={"logs": 1}).json()["logs"]
    assert logs[-1]["level"] == "ERROR"


@pytest.mark.parametrize("header", ["X-Fal-Request-Timeout", "X-Fal-Request-Start-Timeout"])
def test_start_timeout(gateway: Gateway, header: str) -> None:
    request = gateway.client.post("/t2v", json=BODY, headers={header: "30.0"}).json()
    stored = row(gateway.database, request["request_id"])
    assert (stored.start_deadline or 0) - stored.created_at == pytest.approx(30, abs=1)
    put(gateway.database, stored.id, start_deadline=1.0)
    do(gateway.database, reaper.reap)
    result = gateway.client.get(request["response_url"])
    assert result.status_code == 504
    assert result.json()["error_type"] == result.headers["x-fal-error-type"] == "request_timeout"
    assert result.headers["x-fal-request-timeout-type"] == "user"


def test_the_new_name_of_the_start_timeout_wins(gateway: Gateway) -> None:
    headers = {"X-Fal-Request-Timeout": "5", "X-Fal-Request-Start-Timeout": "500"}
    request = gateway.client.post("/t2v", json=BODY, headers=headers).json()
    stored = row(gateway.database, request["request_id"])
    assert (stored.start_deadline or 0) - stored.created_at > 400


def test_options_are_stored(gateway: Gateway) -> None:
    request = gateway.client.post(
        "/t2v?fal_webhook=https%3A%2F%2Fexample.com%2Fhook%3Fa%3D1",
        json=BODY,
        headers={
            "x-fal-queue-priority": "low",
            "x-fal-no-retry": "true",
            "x-fal-tags": "team=a, run = 7, junk, =x",
            "x-fal-runner-hint": "warm",
            "x-fal-object-lifecycle-preference": '{"expiration_duration_seconds": 60}',
        },
    ).json()
    stored = row(gateway.database, request["request_id"])
    assert stored.webhook_url == "https://example.com/hook?a=1"
    assert (stored.priority, stored.no_retry) == (1, True)
    assert stored.tags == {"team": "a", "run": "7"}


@pytest.mark.parametrize("priority", ["normal", "high", "", "LOW "])
def test_unknown_priorities_are_normal(gateway: Gateway, priority: str) -> None:
    headers = {"x-fal-queue-priority": priority}
    request = gateway.client.post("/t2v", json=BODY, headers=headers).json()
    stored = row(gateway.database, request["request_id"])
    assert stored.priority == (1 if priority == "LOW " else 0)


@pytest.mark.parametrize(("limit", "status"), [(2, 429), (3, 200), (None, 200)])
def test_a_limit_on_the_queue(gateway: Gateway, limit: int | None, status: int) -> None:
    for _ in range(3):
        submit(gateway.database)
    params = {} if limit is None else {"fal_max_queue_length": limit}
    reply = gateway.client.post("/t2v", params=params, json=BODY)
    assert reply.status_code == status
    if status == 429:
        assert reply.json()["error_type"] == "queue_full"


def test_an_empty_body_is_no_fields(gateway: Gateway) -> None:
    reply = gateway.client.post("/t2v", headers={"content-type": "application/json"})
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", "training_data_url"]
    assert reply.headers["x-fal-billable-units"] == "0"
    assert UUID.fullmatch(reply.headers["x-fal-request-id"])


def test_report(gateway: Gateway) -> None:
    request_id = submit(gateway.database)
    url = f"/{APP}/requests/{request_id}/report"
    assert gateway.client.get(url).status_code == 404
    report = gateway.settings.data_dir / "report.json"
    report.write_text('{"verdict": "refused"}')
    prefix = row(gateway.database, request_id).storage_prefix
    gateway.storage.put_file(f"{prefix}/report.json", report)
    reply = gateway.client.get(url)
    assert (reply.status_code, reply.json()) == (200, {"verdict": "refused"})
    assert reply.headers["content-type"] == "application/json"


def test_events(gateway: Gateway) -> None:
    request_id = submit(gateway.database)
    url = f"/{APP}/requests/{request_id}/events"
    assert gateway.client.get(url).json()["events"] == []
    do(
        gateway.database,
        lifecycle.progress,
        claimed(gateway.database),
        progress={"step": 2, "of": 10},
        events=[Happened("step", {"step": step}) for step in (1, 2)],
    )
    page = gateway.client.get(url).json()
    assert (page["status"], page["stage"]) == ("IN_PROGRESS", "prepare")
    assert page["progress"] == {"step": 2, "of": 10}
    assert [event["data"] for event in page["events"]] == [{"step": 1}, {"step": 2}]
    later = gateway.client.get(url, params={"after": page["events"][0]["id"]}).json()
    assert [event["data"] for event in later["events"]] == [{"step": 2}]
    last = gateway.client.get(url, params={"after": page["after"]}).json()
    assert (last["events"], last["after"]) == ([], page["after"])
    for after in ("-1", "x", "1e400", "9" * 400):
        assert gateway.client.get(url, params={"after": after}).status_code == 422


def test_submitting_wakes_a_worker(gateway: Gateway) -> None:
    gateway.client.post("/t2v", json=BODY)
    deadline = time.monotonic() + 20
    while gateway.sent != ["cpu"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert gateway.sent == ["cpu"]


def test_a_dead_broker_fails_no_submit(tmp_path: Path, migrated_sqlite: Path) -> None:
    def refuse(queue: str) -> None:
        raise ConnectionRefusedError(queue)

    with running(tmp_path, migrated_sqlite, send=refuse) as gateway:
        assert gateway.client.post("/t2v", json=BODY).status_code == 200


def test_without_its_database_it_is_not_ready(gateway: Gateway) -> None:
    with gateway.database.write() as session:
        session.execute(text("DROP TABLE alembic_version"))
    reply = gateway.client.get("/ready")
    assert reply.status_code == 503


def test_openapi_knows_the_modes(gateway: Gateway) -> None:
    document = gateway.client.get("/openapi.json").json()
    for mode in modes.all():
        operation = document["paths"][f"/{mode.id}"]["post"]
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
        assert set(schema["properties"]) == set(mode.request_model.model_fields)
        fields = mode.request_model.model_fields
        assert schema["required"] == [name for name in fields if fields[name].is_required()]
    assert f"/{APP}/requests/{{request_id}}/status" in document["paths"]


def test_the_whole_way_on_either_database(tmp_path: Path, database_url: str) -> None:
    settings = Settings(data_dir=tmp_path / "data", log_level="ERROR", database_url=database_url)
    gateway = Gateway(settings, None)
    with gateway.client as client:
        request = client.post("/t2v", json=BODY).json()
        held = claimed(gateway.database)
        do(gateway.database, lifecycle.progress, held, logs=[Log("hello")])
        status = client.get(request["status_url"], params={"logs": 1}).json()
        assert [line["message"] for line in status["logs"]] == ["hello"]
        do(gateway.database, lifecycle.complete, held, {"x": 1}, 100, 0.5)
        assert client.get(request["response_url"]).json() == {"x": 1}
        assert client.put(request["cancel_url"]).status_code == 400
    gateway.database.close()
