"""What is refused at submit, and how: C11, C12, C14-C16, C40, C41, C46 (its 422), C49."""

from typing import Any

import httpx
import pytest

from tests.conformance.clients import JavaScript, Python
from tests.conformance.gateway import (
    ALICE,
    APP,
    T2V,
    VALID,
    VALID_OUTPAINT,
    Worker,
    submit,
)
from workers.failures import users_fault

RANK_33 = {**VALID, "rank": 33}


def test_c11_python_subscribe_raises_with_the_details(python: Python) -> None:
    found = python(
        "tell(caught(lambda: fal_client.subscribe(given.app, given.body)))",
        key=ALICE,
        app=T2V,
        body=RANK_33,
    )
    assert found["raised"] == "FalClientHTTPError"
    assert found["status"] == 422
    first = found["message"][0]
    assert first["loc"] == ["body", "rank"]
    assert first["type"]
    assert first["msg"]


def test_c11_javascript_subscribe_throws_a_validation_error(js: JavaScript) -> None:
    found = js(
        "tell(await caught(() => fal.subscribe(given.app, { input: given.body })))",
        key=ALICE,
        app=T2V,
        body=RANK_33,
        field="rank",
    )
    assert found["isValidationError"]
    assert found["status"] == 422
    assert len(found["fields"]) == 1


def test_c12_headers_of_a_422(s: httpx.Client, worker: Worker) -> None:
    """Of one at submit, and of one that the result replays because it took the archive to see."""
    at_submit = s.post(f"/{T2V}", json=RANK_33)
    request = submit(s)
    worker.run(request["request_id"]).fail(
        users_fault("no clips", error_type="invalid_archive", field="training_data_url")
    )
    replayed = s.get(request["response_url"])
    for response in (at_submit, replayed):
        assert response.status_code == 422
        assert response.headers["x-fal-request-id"]
        assert response.headers["x-fal-billable-units"] == "0"
    assert replayed.headers["x-fal-request-id"] == request["request_id"]
    assert replayed.json()["detail"][0]["loc"] == ["body", "training_data_url"]


@pytest.mark.parametrize(
    ("top_left", "bottom_right"),
    [
        pytest.param([640, 640], [128, 128], id="ends before it begins"),
        pytest.param([128, 128], [128, 640], id="no width"),
        pytest.param([0, 0], [768, 768], id="the whole frame"),
        pytest.param([128, 128], [148, 148], id="20 pixels"),
        pytest.param([128, 128], [800, 640], id="outside"),
        pytest.param([-32, 0], [640, 640], id="before the frame"),
    ],
)
def test_c14_crops(s: httpx.Client, top_left: list[int], bottom_right: list[int]) -> None:
    body = {**VALID_OUTPAINT, "crop_top_left": top_left, "crop_bottom_right": bottom_right}
    response = s.post(f"/{APP}/outpaint", json=body)
    assert response.status_code == 422, response.text
    field = next(part for part in response.json()["detail"][0]["loc"][1:] if isinstance(part, str))
    assert field in ("crop_top_left", "crop_bottom_right")


@pytest.mark.parametrize("frames", [0, 9, 121, 96])
def test_c15_conditioning_frames_refused(s: httpx.Client, frames: int) -> None:
    """0 is out of range, 9 and 121 are no multiples of 8, 96 covers a clip of 89."""
    body = {**VALID, "number_of_frames": 89, "conditioning_frames": frames}
    response = s.post(f"/{APP}/extend-suffix", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["detail"][0]["loc"] == ["body", "conditioning_frames"]


def test_c15_one_frame_left_is_accepted(s: httpx.Client, worker: Worker) -> None:
    """88 of 89: the clip's first latent frame covers one frame, and that one is generated."""
    request = submit(s, f"{APP}/extend-suffix", number_of_frames=89, conditioning_frames=88)
    assert worker.row(request["request_id"]).input["conditioning_frames"] == 88


def test_c16_frames_are_snapped_down(s: httpx.Client, worker: Worker) -> None:
    """What the worker gets; the config of a real training is looked at in test_training.py."""
    request = submit(s, number_of_frames=90)
    assert worker.row(request["request_id"]).input["number_of_frames"] == 89


def test_c40_javascript_without_input(js: JavaScript) -> None:
    found = js(
        "tell(await caught(() => fal.queue.submit(given.app, {})))",
        key=ALICE,
        app=T2V,
        field="training_data_url",
    )
    assert found["status"] == 422, found
    assert found["body"]["detail"][0]["loc"] == ["body", "training_data_url"]
    assert len(found["fields"]) == 1


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b'"text"', id="a text"),
        pytest.param(b"null", id="null"),
        pytest.param(b'{"training_data_url": ', id="broken"),
        pytest.param(b"\xff\xfe{}", id="not UTF-8"),
        pytest.param(b'{"rank": NaN}', id="NaN"),
    ],
)
def test_c41_bodies_that_are_no_object(s: httpx.Client, content: bytes) -> None:
    response = s.post(f"/{T2V}", content=content, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422), response.text
    assert response.json()["detail"]


def test_c46_fewer_steps_than_allowed(s: httpx.Client) -> None:
    response = s.post(f"/{T2V}", json={**VALID, "number_of_steps": 50})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body", "number_of_steps"]
    assert response.headers["x-fal-billable-units"] == "0"


@pytest.mark.parametrize("steps", [100, 2000])
def test_c46_units_of_a_success(s: httpx.Client, worker: Worker, steps: int) -> None:
    """Billed as the training stage bills; 100 real steps run in test_training.py."""
    request = submit(s, number_of_steps=steps)
    worker.run(request["request_id"]).complete()
    result = s.get(request["response_url"])
    assert result.status_code == 200
    assert result.headers["x-fal-billable-units"] == str(steps)


def test_c49_three_previews(s: httpx.Client) -> None:
    previews: list[dict[str, Any]] = [{"prompt": "a"}] * 3
    response = s.post(f"/{T2V}", json={**VALID, "validation": previews})
    assert response.status_code == 422
    (detail,) = response.json()["detail"]
    assert detail["type"] == "sequence_too_long"
    assert detail["loc"] == ["body", "validation"]
