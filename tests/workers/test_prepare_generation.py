"""The prepare stage of a generation, on a real clip."""

from pathlib import Path

import pytest

from app.db.models import Purpose
from tests.app.conftest import row
from tests.workers.test_loras import attempt, lora, own_url
from workers import prepare_generation
from workers.runtime import Runtime


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        pytest.param(41, 20, id="the source ends before"),
        pytest.param(9, 9, id="the source goes on"),
    ],
)
def test_a_check_estimates_this_very_source(
    runtime: Runtime, carphone: Path, tmp_path: Path, asked: int, made: int
) -> None:
    """Its price is that of the video that would be made: of four seconds at 5 a second, 20."""
    runtime.storage.put_file("uploads/a/clip.mp4", carphone)
    fields = {
        "video_url": runtime.storage.signed_url("uploads/a/clip.mp4"),
        "loras": [{"path": own_url(runtime, lora(), tmp_path)}],
        "resolution": {"width": 1024, "height": 1000},
        "source_scale": 0.25,
        "frames_per_second": 5,
        "num_frames": asked,
    }
    with attempt(runtime, tmp_path / "attempt", Purpose.CHECK, **fields) as one:
        prepare_generation.prepare(one)
        body = row(runtime.database, one.request_id).result_body
    assert body is not None
    assert body["report"]["source"]["num_frames"] == made
    found = body["estimate"]
    assert (found["video"]["num_frames"], found["video"]["duration_seconds"]) == (made, made / 5)
    assert found["price"]["billable_units"] == -(-1024 * 1000 * made // 10**6)
