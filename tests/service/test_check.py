"""A check on real clips: the report of the training, its refusals, and its prepared data."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import real_clip
from tests.service.harness import SMALL, Stack, stack, upload, zip_of

pytestmark = [pytest.mark.service, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One that has measured nothing yet."""
    with stack(tmp_path_factory.mktemp("service")) as running:
        yield running


def test_a_check_then_its_training(running: Stack, clips: Path) -> None:
    check = running.submit(clips, mode="t2v/check", trigger_phrase="xyz")
    response = running.wait(check)
    assert response.status_code == 200, response.text
    assert response.headers["x-fal-billable-units"] == "0"
    result = response.json()
    assert (result["ok"], result["samples"]) == (True, 2)
    assert result["report"] == running.http.get(check["response_url"] + "/report").json()
    assert running.attempts(check) == [("prepare", "completed")]
    assert result["estimate"]["tokens"] == {"video": 288, "audio": 0, "assumes": []}
    assert result["estimate"]["price"]["usd"] == 0.6
    assert result["estimate"]["time"]["total_seconds"] is None

    training = running.submit(clips, trigger_phrase="xyz", rank=16)
    assert running.wait(training).status_code == 200
    assert "prepared before" in running.log(training)
    report = running.http.get(training["response_url"] + "/report").json()
    assert report == result["report"]

    again = running.submit(clips, mode="t2v/check", trigger_phrase="xyz")
    time = running.wait(again).json()["estimate"]["time"]
    assert (time["device"], time["steps"]["measurements"]) == ("cpu", 1)
    assert 0 < time["steps"]["seconds"] <= time["total_seconds"] < 150


def test_what_a_training_refuses(running: Stack, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "silent.zip", ("a.mp4", real_clip("carphone_pristine.mp4")))
    both = [running.submit(archive, mode=mode, with_audio=True) for mode in ("t2v/check", "t2v")]
    answers = [running.wait(request) for request in both]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].json() == answers[1].json()
    (said,) = answers[0].json()["detail"]
    assert said["loc"] == ["body", "with_audio"]
    for request in both:
        assert running.log(request).count(said["msg"]) == 1


def test_validation_clips_are_checked_too(running: Stack, clips: Path, tmp_path: Path) -> None:
    """The clip of a preview is no video: the check says so, as the training would."""
    bad = tmp_path / "bad.mp4"
    bad.write_text("<html>not a video</html>")
    request = running.submit(
        clips,
        mode="extend-suffix/check",
        validation=[{"prompt": "a", "video_url": upload(running.http, bad)}],
        **{**SMALL, "number_of_frames": 17, "validation_number_of_frames": 17},
    )
    response = running.wait(request)
    assert response.status_code == 422, response.text
    assert response.json()["detail"][0]["loc"] == ["body", "validation", 0, "video_url"]
