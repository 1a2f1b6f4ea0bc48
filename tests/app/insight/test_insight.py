"""Curve, log, live changes, samples, overview, usage, deliveries: what the console reads."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, insert, text

from app.auth import owner_of
from app.db.engine import Database
from app.db.models import Base, Event, LogLine, Purpose, Stage, Worker
from app.keys import store
from app.requests import lifecycle
from tests.app.client.conftest import KEY, OTHER, Served, serving
from tests.app.conftest import put, row, submit
from tests.app.test_lifecycle import claimed, do
from workers import presence

MINE = {"authorization": f"Key {KEY}"}
THEIRS = {"authorization": f"Key {OTHER}"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("insight")
    if request.param == "postgresql":
        url = request.getfixturevalue("migrated_postgres")
    else:
        url = f"sqlite:///{folder / 'reelsmith.db'}"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), folder / "reelsmith.db")
    with serving(folder / "service", url, api_keys=f"{KEY},{OTHER}") as served:
        yield served


@pytest.fixture
def guarded(gateway: Served) -> Served:
    """Two keys, and nothing in its tables."""
    with gateway.database.write() as session:
        if gateway.database.engine.dialect.name == "postgresql":
            tables = ", ".join(Base.metadata.tables)
            session.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))
        else:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(delete(table))
    return gateway


def ask(
    served: Served, path: str, headers: dict[str, str] = MINE, method: str = "GET", **params: Any
) -> httpx.Response:
    return httpx.request(method, served.url + path, headers=headers, params=params, trust_env=False)


def steps(database: Database, request_id: str, losses: dict[int, float | None]) -> None:
    rows = [
        {"request_id": request_id, "kind": "step", "ts": 1.0,
         "data": {"step": step, "of": 1000, "loss": loss, "lr": 1e-4, "step_time_s": 0.5}}
        for step, loss in losses.items()
    ]  # fmt: skip
    with database.write() as session:
        session.execute(insert(Event), rows)


def lines(database: Database, request_id: str, *texts: str, level: str = "INFO") -> None:
    rows = [{"request_id": request_id, "ts": 1.0, "level": level, "message": t} for t in texts]
    with database.write() as session:
        session.execute(insert(LogLine), rows)


def test_a_short_curve_is_every_step(guarded: Served) -> None:
    id = submit(guarded.database, owner_of(KEY))
    steps(guarded.database, id, {1: 0.5, 2: None, 3: 0.25})
    found = ask(guarded, f"/requests/{id}/curve").json()
    assert (found["bucket_steps"], found["steps"]) == (1, [1, 2, 3])
    assert found["loss"] == found["loss_min"] == found["loss_max"] == [0.5, None, 0.25]
    assert found["last_step"] == 3


def test_a_long_curve_is_thinned_and_keeps_its_spikes(guarded: Served) -> None:
    id = submit(guarded.database, owner_of(KEY))
    steps(guarded.database, id, {n: 9.0 if n == 55 else 1.0 for n in range(1, 101)})
    found = ask(guarded, f"/requests/{id}/curve", points=10).json()
    assert found["bucket_steps"] == 10
    assert found["steps"] == list(range(10, 101, 10))
    assert found["loss"] == pytest.approx([1.8 if end == 60 else 1.0 for end in found["steps"]])
    assert max(found["loss_max"]) == 9.0
    assert set(found["loss_min"]) == {1.0}


@pytest.mark.parametrize("first", [1, 41], ids=["its beginning", "its middle"])
def test_a_part_of_a_curve_is_finer(guarded: Served, first: int) -> None:
    id = submit(guarded.database, owner_of(KEY))
    steps(guarded.database, id, {n: float(n) for n in range(1, 101)})
    part = {"first": first, "last": first + 9, "points": 10}
    found = ask(guarded, f"/requests/{id}/curve", **part).json()
    assert (found["bucket_steps"], found["steps"]) == (1, list(range(first, first + 10)))
    assert found["last_step"] == 100


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, ["a", "B 1", "c"]),
        ({"limit": 2}, ["B 1", "c"]),
        ({"after": 1, "limit": 1}, ["B 1"]),
        ({"before": 3}, ["a", "B 1"]),
        ({"search": "b"}, ["B 1"]),
        ({"search": "%"}, []),
        ({"level": "WARN"}, ["c"]),
        ({"level": ["WARN", "INFO"]}, ["a", "B 1", "c"]),
    ],
    ids=str,
)
def test_a_log_by_pages_levels_and_text(
    guarded: Served, params: dict[str, Any], found: list[str]
) -> None:
    id = submit(guarded.database, owner_of(KEY))
    lines(guarded.database, id, "a", "B 1")
    lines(guarded.database, id, "c", level="WARN")
    page = ask(guarded, f"/requests/{id}/log", **params).json()
    assert [line["message"] for line in page["lines"]] == found
    assert page["newest"] == 3


def live(served: Served, id: str, **headers: str) -> list[tuple[str, dict[str, Any]]]:
    """(event id, data) of a stream that ends."""
    stream = ask(served, f"/requests/{id}/live", {**MINE, **headers}).text
    events = []
    for block in stream.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines())
        if "data" in fields:
            events.append((fields["id"], json.loads(fields["data"])))
    return events


def test_live_changes_go_on_where_the_browser_was(guarded: Served) -> None:
    id = submit(guarded.database, owner_of(KEY))
    steps(guarded.database, id, {1: 0.5, 2: 0.4})
    lines(guarded.database, id, "one", "two")
    held = claimed(guarded.database)
    do(guarded.database, lifecycle.fail, held, status=500, body={}, error="broken",
       error_type="internal_error", retryable=False)  # fmt: skip
    ((mark, first),) = live(guarded, id)
    assert [event["data"]["step"] for event in first["events"]] == [1, 2]
    assert [line["message"] for line in first["lines"]][:2] == ["one", "two"]
    assert (first["status"], first["error"]) == ("COMPLETED", "broken")
    ((_, rest),) = live(guarded, id, **{"last-event-id": f"1-{first['lines'][0]['id']}"})
    assert [event["data"]["step"] for event in rest["events"]] == [2]
    assert rest["lines"] == first["lines"][1:]
    ((_, nothing),) = live(guarded, id, **{"last-event-id": mark})
    assert nothing["events"] == nothing["lines"] == []


def test_events_by_kind(guarded: Served) -> None:
    id = submit(guarded.database, owner_of(KEY))
    steps(guarded.database, id, {1: 0.5})
    with guarded.database.write() as session:
        session.add(Event(request_id=id, kind="preview", data={"step": 1}))
    found = ask(guarded, f"/requests/{id}/events", kind=["preview", "stage"]).json()
    assert [event["kind"] for event in found["events"]] == ["preview"]


@pytest.mark.parametrize("what", ["curve", "log", "live", "samples", "events", ""])
def test_another_owners_request_is_absent(guarded: Served, what: str) -> None:
    id = submit(guarded.database, owner_of(KEY))
    reply = ask(guarded, f"/requests/{id}/{what}".rstrip("/"), THEIRS)
    assert (reply.status_code, reply.json()) == (404, {"status": "NOT_FOUND"})
    assert ask(guarded, f"/requests/{id}/{what}".rstrip("/"), {}).status_code == 401


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"standing": "queued"}, ["queued"]),
        ({"standing": "failed"}, ["failed"]),
        ({"standing": "cancelled"}, ["cancelled"]),
        ({"standing": "succeeded"}, ["done"]),
        ({"purpose": "check"}, ["queued"]),
        ({"endpoint": "inpaint"}, ["failed"]),
        ({"search": "needle"}, ["done"]),
    ],
    ids=str,
)
def test_a_history_by_filters(guarded: Served, params: dict[str, Any], found: list[str]) -> None:
    database, owner = guarded.database, owner_of(KEY)
    ids = {name: submit(database, owner) for name in ("done", "failed", "cancelled", "queued")}
    put(database, ids["done"], state="completed", result_status=200, billable_units=500,
        input={"trigger_phrase": "a Needle"})  # fmt: skip
    put(database, ids["failed"], state="completed", result_status=422, error_type="value_error",
        mode="inpaint", endpoint="fal-ai/ltx23-trainer-v2/inpaint")  # fmt: skip
    put(database, ids["cancelled"], state="completed", result_status=499,
        error_type="client_cancelled")  # fmt: skip
    put(database, ids["queued"], purpose="check")
    page = ask(guarded, "/requests", **params).json()["requests"]
    assert [one["request_id"] for one in page] == [ids[name] for name in found]
    if found == ["done"]:
        assert (page[0]["usd"], page[0]["label"]) == (3.0, "a Needle")


def test_usage_is_the_keys_own(guarded: Served) -> None:
    database = guarded.database
    submit(database, owner_of(OTHER))
    id = submit(database, owner_of(KEY))
    held = claimed(database)
    while held.request_id != id:
        held = claimed(database)
    do(database, lifecycle.complete, held, {}, 500, 12.5)
    found = ask(guarded, "/usage").json()
    assert (found["key"]["queued"]["used"], found["key"]["running"]["used"]) == (0, 0)
    (day,) = found["days"]
    assert (day["succeeded"], day["usd"], day["seconds"]) == (1, 3.0, 12.5)
    assert ask(guarded, "/usage", THEIRS).json()["days"] == []


def test_keys_are_the_operators_to_see(guarded: Served) -> None:
    with guarded.database.write() as session:
        id, key = store.create(session, "ann", store.Limits(max_running=1))
    mine = ask(guarded, "/keys").json()
    assert mine["operator"]
    assert [one["id"] for one in mine["keys"]] == [owner_of(KEY), id]
    theirs = ask(guarded, "/keys", {"authorization": f"Key {key}"})
    assert [one["name"] for one in theirs.json()["keys"]] == ["ann"]
    assert not theirs.json()["operator"]
    assert key not in ask(guarded, "/keys").text


def test_deliveries_and_redelivery(guarded: Served) -> None:
    hook = "https://example.com/hook?secret=1"
    id = submit(guarded.database, owner_of(KEY), webhook_url=hook)
    (found,) = ask(guarded, "/webhooks/deliveries").json()["deliveries"]
    assert (found["url"], found["state"]) == ("https://example.com/hook", "waiting")
    again = f"/webhooks/deliveries/{id}/redeliver"
    assert ask(guarded, again, method="POST").status_code == 400
    put(guarded.database, id, state="completed", webhook_tries=31)
    assert ask(guarded, again, THEIRS, "POST").status_code == 404
    assert ask(guarded, "/webhooks/deliveries", THEIRS).json() == {"deliveries": []}
    assert ask(guarded, again, method="POST").json() == {"status": "DUE"}
    assert row(guarded.database, id).webhook_next_at is not None


def test_the_overview(guarded: Served) -> None:
    database = guarded.database
    with database.write() as session:
        presence.say(session, "worker", "gpu", {"device": "A GPU", "load_percent": 50.0})
    submit(database, owner_of(OTHER))
    mine = submit(database, owner_of(KEY))
    first = claimed(database)
    found = ask(guarded, "/overview").json()
    assert found["queues"]["prepare"] == {"queued": 1, "running": 1}
    (worker,) = found["workers"]
    assert (worker["device"], worker["alive"], worker["busy"]) == ("A GPU", True, True)
    # Whose it is stays between the worker and its owner.
    assert worker["request_id"] is None
    put(database, first.request_id, state="queued", worker=None)
    put(database, mine, state="running", worker="worker", stage=Stage.TRAIN)
    assert ask(guarded, "/overview").json()["workers"][0]["request_id"] == mine
    assert found["store"]["ok"]


def test_a_worker_says_again_what_changed(guarded: Served) -> None:
    for load in (1.0, 2.0):
        with guarded.database.write() as session:
            presence.say(session, "worker", "cpu", {"load_percent": load})
    with guarded.database.read() as session:
        (found,) = session.query(Worker).all()
    assert found.facts == {"load_percent": 2.0}


@pytest.mark.parametrize(
    ("answer", "load", "memory"),
    [("NVIDIA H200, 143771, 1024, 97\n", 97.0, 143771 * 1024**2),
     ("A, [N/A], [N/A], [N/A]\n", None, None)],
    ids=["known", "not told"],
)  # fmt: skip
def test_what_the_driver_tells(answer: str, load: float | None, memory: float | None) -> None:
    facts = presence.parse_gpu(answer)
    assert (facts["load_percent"], facts["memory_total_bytes"]) == (load, memory)


@pytest.mark.parametrize(
    ("queue", "device"), [("cpu", "CPU"), ("gpu", "A GPU"), ("cpu,gpu", "A GPU")]
)
def test_a_worker_of_both_queues_tells_of_its_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, queue: str, device: str
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'A GPU, 80000, 10, 5'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert presence.device_facts(queue)["device"].startswith(device)


def trains(served: Served, **input: Any) -> str:
    """A request that a worker trains now."""
    id = submit(served.database, owner_of(KEY))
    if input:
        put(served.database, id, input={"training_data_url": "https://example.com/a.zip", **input})
    held = claimed(served.database)
    do(served.database, lifecycle.advance, held, {"key": "x"})
    claimed(served.database, Stage.TRAIN)
    return id


def test_save_and_sample_now(guarded: Served) -> None:
    id = trains(guarded, validation=[{"prompt": "a fox"}])
    for wish in ("save", "sample"):
        path = f"/requests/{id}/{wish}"
        assert ask(guarded, path, THEIRS, method="PUT").status_code == 404
        answer = ask(guarded, path, method="PUT")
        assert answer.status_code == 202
        assert answer.json()["wish"] == wish
        assert answer.headers["x-fal-request-id"] == id
        assert ask(guarded, path, method="PUT").json() == answer.json(), "the same wish"
    assert ask(guarded, f"/requests/{id}").json()["wishes"] == ["save", "sample"]


def test_what_can_not_be_saved_or_sampled_now(guarded: Served) -> None:
    silent = trains(guarded)
    waiting = submit(guarded.database, owner_of(KEY))
    check = submit(guarded.database, owner_of(KEY), purpose=Purpose.CHECK)
    for id, wish, words in (
        (silent, "sample", "no validation prompts"),
        (waiting, "save", "not training yet"),
        (check, "save", "no training"),
    ):
        answer = ask(guarded, f"/requests/{id}/{wish}", method="PUT")
        assert (answer.status_code, answer.json()["error_type"]) == (409, "not_training")
        assert words in answer.json()["detail"]
    assert ask(guarded, "/requests/nothing/save", method="PUT").status_code == 404


def make(served: Served, body: Any, headers: dict[str, str] = MINE) -> httpx.Response:
    return httpx.post(f"{served.url}/keys", json=body, headers=headers, trust_env=False)


def test_an_operator_makes_and_revokes_a_key(guarded: Served) -> None:
    made = make(guarded, {"name": " ann ", "max_running": 1})
    assert made.status_code == 201
    id, key = made.json()["id"], made.json()["key"]
    hers = {"authorization": f"Key {key}"}
    (shown,) = ask(guarded, "/keys", hers).json()["keys"]
    assert (shown["name"], shown["running"]["limit"], shown["queued"]["limit"]) == ("ann", 1, None)
    assert key not in ask(guarded, "/keys").text
    assert make(guarded, {"name": "bob"}, hers).status_code == 403, "she runs no service"
    assert ask(guarded, f"/keys/{id}", hers, method="DELETE").status_code == 403

    revoked = ask(guarded, f"/keys/{id}", method="DELETE")
    assert revoked.status_code == 200
    assert ask(guarded, f"/keys/{id}", method="DELETE").json() == revoked.json(), "once"
    deadline = time.monotonic() + 30
    while ask(guarded, "/requests", hers).status_code != 401:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "ann", "max_running": -1}, "max_running"),
        ({"name": "ann", "admin": True}, "admin"),
    ],
    ids=str,
)
def test_a_bad_wish_for_a_key(guarded: Served, body: Any, field: str) -> None:
    answer = make(guarded, body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", field]


@pytest.mark.parametrize("id", ["rs-nobody", owner_of(KEY)])
def test_revoking_what_is_no_key_of_the_database(guarded: Served, id: str) -> None:
    answer = ask(guarded, f"/keys/{id}", method="DELETE")
    assert answer.status_code == 404
    assert "REELSMITH_API_KEYS" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/requests/a%00b/save"),
        ("PUT", "/requests/a%00b/sample"),
        ("GET", "/requests/a%00b"),
        ("GET", "/requests?before=a%00b"),
    ],
)
def test_an_id_with_nul_is_no_fault_of_ours(gateway: Served, method: str, path: str) -> None:
    """SQLite looks for it; PostgreSQL's driver raises."""
    headers = {"Authorization": f"Key {KEY}"}
    reply = httpx.request(method, gateway.url + path, headers=headers, trust_env=False)
    assert reply.status_code == 422, reply.text
    (detail,) = reply.json()["detail"]
    assert detail["msg"] == "An id has no NUL character"
