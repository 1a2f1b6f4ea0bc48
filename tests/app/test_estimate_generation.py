"""Estimates of generations: times that were measured, and the memory of sampling."""

from typing import Any

import pytest
from sqlalchemy import update

from app import modes
from app.db.engine import Database
from app.db.models import Attempt, Stage
from app.requests import lifecycle
from app.requests.estimate_generation import GenerationEstimate, estimate_generation
from app.requests.lifecycle import Happened
from tests.app.asking import parsed
from tests.app.conftest import Gateway, put, submit
from tests.app.test_lifecycle import claimed, do
from tests.app.test_mode_outpaint_lora import MODE, PATH

REAL = "diffusers/LTX-2.3-Diffusers"
H200 = "NVIDIA H200"
FIELDS: dict[str, Any] = {"resolution": {"width": 1280, "height": 720}, "num_frames": 121}
PIXELS = 1280 * 720 * 121
GENERATED = {
    "model": REAL,
    "device": H200,
    "video_tokens": 16 * 40 * 23,
    "audio_tokens": 126,
    "num_passes": 1,
    "step_time_s": 2.0,
    "num_pixels": PIXELS,
    "writing_s": 20.0,
    "peak_memory_bytes": 60_000_000_000,
    "device_memory_bytes": 150_000_000_000,
}


def generated(
    database: Database,
    *,
    steps: int = 15,
    prepare_s: float = 10.0,
    rest_s: float = 7.0,
    **facts: Any,
) -> str:
    """A finished generation that took as long as its facts say."""
    found = {**GENERATED, **facts}
    request_id = submit(database)
    put(database, request_id, mode=PATH, endpoint=MODE.id, input={"num_inference_steps": steps})
    do(database, lifecycle.advance, claimed(database), {})
    held = claimed(database, Stage.TRAIN)
    do(database, lifecycle.progress, held, events=[Happened("generated", found)])
    do(database, lifecycle.complete, held, {}, 1, 1.0)
    train_s = steps * found["step_time_s"] + found["writing_s"] + rest_s
    for stage, seconds in ((Stage.PREPARE, prepare_s), (Stage.TRAIN, train_s)):
        with database.write() as session:
            session.execute(
                update(Attempt)
                .where(Attempt.request_id == request_id, Attempt.stage == stage)
                .values(ended_at=Attempt.started_at + seconds)
            )
    return request_id


def of(database: Database, model: str = REAL, **fields: Any) -> GenerationEstimate:
    with database.read() as session:
        request = parsed(PATH, **{**FIELDS, **fields})
        return estimate_generation(session, modes.by_path(PATH), request, model)


def test_nothing_was_measured_yet(shared_gateway: Gateway) -> None:
    found = shared_gateway.client.get(f"/{PATH}/estimate").json()
    assert found["time"]["total_seconds"] is None
    assert "No generation" in found["time"]["reason"]
    assert "tiny" in found["memory"]["reason"]


def test_times_are_medians_of_what_was_measured(database: Database) -> None:
    for step_time_s in (1.0, 2.0, 9.0):
        generated(database, step_time_s=step_time_s)
    time = of(database, num_inference_steps=30).time
    assert (time.device, time.reason) == (H200, None)
    assert (time.steps.seconds, time.steps.measurements) == (60.0, 3)
    assert (time.writing.seconds, time.writing.scaled_by_tokens) == (20.0, False)
    assert time.prepare.seconds == pytest.approx(10, abs=0.2)
    assert time.rest.seconds == pytest.approx(7, abs=0.2)
    assert time.total_seconds == pytest.approx(97, abs=0.5)


def test_guidance_doubles_a_step(database: Database) -> None:
    generated(database)
    assert of(database, guidance_scale=3).time.steps.seconds == 60.0
    generated(database, num_passes=2, step_time_s=4.0)
    assert of(database).time.steps.seconds == 30.0


def test_other_sizes_are_scaled_and_said_to_be(database: Database) -> None:
    generated(database)
    time = of(database, num_frames=241, generate_audio=False).time
    tokens = GENERATED["video_tokens"] + GENERATED["audio_tokens"]
    assert time.steps.seconds == round(30 * (31 * 40 * 23) / tokens, 1)
    assert time.writing.seconds == round(20 * 241 / 121, 1)
    assert time.steps.scaled_by_tokens
    assert time.writing.scaled_by_tokens


def test_what_does_not_count(database: Database) -> None:
    generated(database, model="another/model")
    put(database, generated(database), mode="t2v", input={"number_of_steps": 100})
    put(database, generated(database), result_status=500)
    assert of(database).time.steps.seconds is None


def test_memory_of_the_real_model(database: Database) -> None:
    memory = of(database).memory
    assert (memory.least_bytes, memory.full_speed_bytes) == (13_945_207_040, 47_977_676_288)
    assert memory.reason is not None
    plans = {fit.device: fit.plan or "" for fit in memory.fits}
    assert "fp8" in plans["24 GB card"]
    assert "offloaded" in plans["24 GB card"]
    assert "full precision" in plans["80 GB card"]
    generated(database)
    memory = of(database).memory
    assert (memory.measured_peak_bytes, memory.reason) == (60_000_000_000, None)
    assert memory.fits[0].device == H200
    assert of(database, num_frames=241).memory.measured_peak_bytes is None
