"""Estimates: fal's price, measured times, the trainer's memory; or null with a reason."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text, update

from app import modes
from app.db.engine import Database
from app.db.models import Attempt, Stage
from app.requests import lifecycle
from app.requests.estimate import DatasetFacts, estimate
from app.requests.lifecycle import Happened
from tests.app.asking import TRAININGS, example, parsed
from tests.app.conftest import Gateway, put, running, submit
from tests.app.test_lifecycle import claimed, do

REAL = "diffusers/LTX-2.3-Diffusers"
H200 = "NVIDIA H200"
TRAINED = {
    "model": REAL,
    "device": H200,
    "video_tokens": 6912,
    "audio_tokens": 93,
    "rank": 32,
    "step_time_s": 0.5,
    "num_previews": 0,
    "previews_s": 0.0,
    "preview_tokens": 10800,
    "peak_memory_bytes": 140_000_000_000,
}


def trained(
    database: Database,
    *,
    steps: int = 1000,
    prepare_s: float = 60.0,
    rest_s: float = 90.0,
    **facts: Any,
) -> str:
    """A finished training that took as long as its facts say."""
    found = {**TRAINED, **facts}
    request_id = submit(database)
    put(database, request_id, input={"number_of_steps": steps})
    do(database, lifecycle.advance, claimed(database), {})
    held = claimed(database, Stage.TRAIN)
    do(database, lifecycle.progress, held, events=[Happened("trained", found)])
    do(database, lifecycle.complete, held, {}, steps, 1.0)
    train_s = steps * (found["step_time_s"] or 0) + found["previews_s"] + rest_s
    for stage, seconds in ((Stage.PREPARE, prepare_s), (Stage.TRAIN, train_s)):
        with database.write() as session:
            session.execute(
                update(Attempt)
                .where(Attempt.request_id == request_id, Attempt.stage == stage)
                .values(ended_at=Attempt.started_at + seconds)
            )
    return request_id


def of(
    database: Database, model: str = REAL, dataset: DatasetFacts | None = None, **fields: Any
) -> Any:
    with database.read() as session:
        request = parsed("t2v", **{"validation": [], **fields})
        return estimate(session, modes.by_path("t2v"), request, model, dataset)


@pytest.mark.parametrize("mode", TRAININGS, ids=lambda mode: mode.path)
@pytest.mark.parametrize("form", ["/{path}/estimate", "/{id}/estimate", "/run/{id}/estimate"])
def test_every_training_by_body(shared_gateway: Gateway, mode: Any, form: str) -> None:
    body = {**example(mode), "number_of_steps": 2000}
    reply = shared_gateway.client.post(form.format(path=mode.path, id=mode.id), json=body)
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert found["endpoint"] == mode.id
    assert found["price"]["usd"] == float(mode.price_per_unit * 2000)
    assert found["time"]["total_seconds"] is None
    assert "nothing was measured" in found["time"]["reason"]
    assert found["memory"]["least_bytes"] is None
    assert "tiny" in found["memory"]["reason"]


def test_by_query(shared_gateway: Gateway) -> None:
    parameters = {
        "number_of_steps": "500",
        "resolution": "low",
        "with_audio": "false",
        "trigger_phrase": "123",
        "validation": '[{"prompt": "a cat"}]',
        "unknown": "x",
    }
    found = shared_gateway.client.get("/t2v/estimate", params=parameters).json()
    assert found["price"] == {"usd": 3.0, "billable_units": 500, "usd_per_unit": 0.006}
    assert (found["tokens"]["video"], found["tokens"]["audio"]) == (3072, 0)
    body = {
        **parameters,
        "number_of_steps": 500,
        "with_audio": False,
        "validation": [{"prompt": "a cat"}],
    }
    assert shared_gateway.client.post("/t2v/estimate", json=body).json() == found


def test_the_shortest_training_is_priced_as_fal_does(shared_gateway: Gateway) -> None:
    found = shared_gateway.client.get("/t2v/estimate?number_of_steps=100").json()
    assert found["price"]["usd"] == 0.6


@pytest.mark.parametrize(
    ("parameters", "loc"),
    [
        ({"rank": "7"}, ["query", "rank"]),
        ({"rank": "x"}, ["query", "rank"]),
        ({"validation": "[" * 2000}, ["query", "validation"]),
        ({"number_of_steps": "NaN"}, ["query", "number_of_steps"]),
        ({"number_of_steps": "1" * 5000}, ["query", "number_of_steps"]),
    ],
)
def test_what_a_training_refuses(
    shared_gateway: Gateway, parameters: dict[str, str], loc: list[str]
) -> None:
    reply = shared_gateway.client.get("/t2v/estimate", params=parameters)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == loc


@pytest.mark.parametrize("body", [b"[1]", b"{", b"null", b'{"rank": 7}', b"[" * 5000])
def test_bodies_that_are_none(shared_gateway: Gateway, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    reply = shared_gateway.client.post("/t2v/estimate", content=body, headers=headers)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"][0] == "body"


def test_only_for_those_with_a_key(tmp_path: Path, migrated_sqlite: Path) -> None:
    with running(tmp_path, migrated_sqlite, api_keys=("k3y-one",)) as gateway:
        assert gateway.client.get("/t2v/estimate").status_code == 401
        assert gateway.client.post("/t2v/estimate", json={}).status_code == 401


def test_times_are_medians_of_what_was_measured(database: Database) -> None:
    for step_time_s in (0.4, 0.5, 3.0):
        trained(database, step_time_s=step_time_s)
    time = of(database, number_of_steps=2000).time
    assert (time.device, time.reason) == (H200, None)
    assert time.steps.seconds == 1000.0
    assert (time.steps.measurements, time.steps.scaled_by_tokens) == (3, False)
    assert time.steps.newest is not None
    assert time.steps.newest.endswith("Z")
    assert time.prepare.seconds == pytest.approx(60, abs=0.2)
    assert time.rest.seconds == pytest.approx(90, abs=0.2)
    assert time.previews.seconds == 0
    assert time.total_seconds == pytest.approx(1150, abs=0.5)


def test_other_sizes_are_scaled_by_tokens_and_said_to_be(database: Database) -> None:
    trained(database, video_tokens=3000, audio_tokens=0)
    steps = of(database, with_audio=False, number_of_steps=1000).time.steps
    assert steps.seconds == round(1000 * 0.5 * 6912 / 3000, 1)
    assert steps.scaled_by_tokens
    trained(database, audio_tokens=0, step_time_s=2.0)
    steps = of(database, with_audio=False, number_of_steps=1000).time.steps
    assert (steps.seconds, steps.measurements, steps.scaled_by_tokens) == (2000.0, 1, False)


def test_previews_have_measurements_of_their_own(database: Database) -> None:
    trained(database)
    prompts = [{"prompt": "a"}, {"prompt": "b"}]
    time = of(database, validation=prompts).time
    assert time.previews.seconds is None
    assert "previews" in (time.previews.reason or "")
    assert time.steps.seconds is not None
    assert (time.total_seconds, time.reason) == (None, time.previews.reason)
    trained(database, num_previews=4, previews_s=40.0)
    time = of(database, validation=prompts).time
    assert time.previews.seconds == 80.0, "two prompts at four points, ten seconds each"
    assert time.total_seconds is not None


def test_what_does_not_count(database: Database) -> None:
    trained(database, model="another/model")
    trained(database, step_time_s=None)
    put(database, trained(database), expired_at=1.0)
    put(database, trained(database), mode="outpaint")
    put(database, trained(database), result_status=500)
    assert of(database).time.steps.seconds is None
    trained(database, device="NVIDIA A100", step_time_s=9.0)
    trained(database)
    assert of(database, number_of_steps=1000).time.steps.seconds == 500.0


def test_a_training_of_several_attempts_times_its_steps_only(database: Database) -> None:
    request_id = trained(database)
    with database.write() as session:
        session.add(
            Attempt(token="x", request_id=request_id, number=9, stage=Stage.TRAIN, worker="w")
        )
    time = of(database).time
    assert time.steps.seconds is not None
    assert time.rest.seconds is None


def test_memory_of_the_real_model(database: Database) -> None:
    memory = of(database, with_audio=False).memory
    assert memory.least_bytes is not None
    assert memory.full_speed_bytes is not None
    assert 11e9 < memory.least_bytes < 18e9  # everything quantised, recomputed and offloaded
    assert 113e9 < memory.full_speed_bytes < 120e9
    plans = {fit.device: fit.plan or "" for fit in memory.fits}
    assert "fp8" in plans["24 GB card"]
    assert "full precision, 0 of 48 blocks recomputed" in plans["141 GB card"]
    assert (memory.measured_peak_bytes, memory.reason is None) == (None, False)
    more = of(database, with_audio=False, rank=128, resolution="high").memory
    assert (more.least_bytes or 0) > memory.least_bytes
    assert (more.full_speed_bytes or 0) > memory.full_speed_bytes


def test_the_device_that_was_measured_comes_first(database: Database) -> None:
    trained(database, device_memory_bytes=150_000_000_000)
    first, *others = of(database).memory.fits
    assert (first.device, first.free_bytes) == (H200, 144_000_000_000)
    assert "full precision" in (first.plan or "")
    assert others[0].device == "24 GB card"


def test_a_measured_peak_is_of_the_same_size_and_rank(database: Database) -> None:
    trained(database)
    assert of(database).memory.measured_peak_bytes == TRAINED["peak_memory_bytes"]
    assert of(database).memory.reason is None
    assert of(database, rank=64).memory.measured_peak_bytes is None
    assert of(database, resolution="low").memory.measured_peak_bytes is None


def test_a_known_dataset_takes_the_place_of_assumptions(database: Database) -> None:
    assumed = of(database).tokens
    assert (assumed.video, assumed.audio, len(assumed.assumes)) == (6912, 93, 2)
    images = of(database, dataset=DatasetFacts(num_frames=1, with_audio=False)).tokens
    assert (images.video, images.audio, images.assumes) == (576, 0, [])


def test_the_newest_are_found_by_index(gateway: Gateway) -> None:
    """However many requests there are. (SQLite only: PostgreSQL reads a small table whole.)"""
    with gateway.database.read() as session:
        plan = session.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT id FROM requests WHERE "
                "result_status = 200 AND purpose = 'train' AND mode = 't2v' AND finished_at IS NOT "
                "NULL AND expired_at IS NULL ORDER BY finished_at DESC LIMIT 20"
            )
        ).all()
    assert "ix_requests_retention" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


def test_every_field_is_a_documented_parameter(shared_gateway: Gateway) -> None:
    document = shared_gateway.client.get("/openapi.json").json()
    for mode in modes.all():
        for path in (mode.path, mode.id):
            asked = document["paths"][f"/{path}/estimate"]["get"]["parameters"]
            assert {parameter["name"] for parameter in asked} == set(
                mode.request_model.model_fields
            )
            assert not any(parameter["required"] for parameter in asked)
