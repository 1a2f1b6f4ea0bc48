"""The main job through the real service: processes, HTTP, the tiny model, real clips."""

import json
import zipfile
from pathlib import Path

import av
import pytest
from safetensors import safe_open

from tests.conftest import real_clip
from tests.service.harness import Stack, stack, zip_of

pytestmark = [pytest.mark.service, pytest.mark.timeout(400)]


def test_zip_to_lora(clips: Path, tmp_path: Path) -> None:
    """Everything the page promises about the outputs, with the broker that `reelsmith up` finds
    here; the other tests of this file run on files."""
    with stack(tmp_path / "service", "auto") as service:
        request = service.submit(
            clips,
            trigger_phrase="xyz",
            validation=[{"prompt": "xyz in the sun"}, {"prompt": "xyz at night"}],
            debug_dataset=True,
        )
        response = service.wait(request)
        assert response.status_code == 200, response.text
        assert response.headers["x-fal-billable-units"] == "100"
        result = response.json()
        assert set(result) >= {"lora_file", "config_file", "video", "debug_dataset"}
        for file in (result["lora_file"], result["config_file"], result["video"]):
            assert set(file) >= {"url", "content_type", "file_name", "file_size"}

        lora = service.download(result["lora_file"], tmp_path / "lora.safetensors")
        with safe_open(lora, "pt") as tensors:
            names = list(tensors.keys())
            assert tensors.metadata()["rank"] == "8"
        assert all(name.startswith("diffusion_model.transformer_blocks.") for name in names)
        assert not any("audio" in name for name in names), "one clip is silent"

        config = json.loads(service.download(result["config_file"], tmp_path / "c").read_text())
        assert config["trigger_phrase"] == "xyz"
        assert config["training_type"] == "t2v"

        reel = service.download(result["video"], tmp_path / "reel.mp4")
        with av.open(str(reel)) as container:
            assert sum(1 for _ in container.decode(video=0)) >= 4 * 9

        with zipfile.ZipFile(service.download(result["debug_dataset"], tmp_path / "d")) as debug:
            captions = [debug.read(n).decode() for n in debug.namelist() if n.endswith(".txt")]
        assert sorted(captions) == ["xyz a man in a car", "xyz a rabbit in a meadow"]

        report = service.http.get(request["response_url"] + "/report").json()
        assert report["totals"]["used"] == 2
        assert report["audio"]["trained"] is False

        steps = service.events(request, "step")
        assert steps[-1]["data"]["step"] == 100
        assert len(service.events(request, "preview")) == 8
        assert service.attempts(request) == [("prepare", "advanced"), ("train", "completed")]


def test_sound_is_trained_when_every_clip_has_it(
    running: Stack, clips_with_sound: Path, tmp_path: Path
) -> None:
    request = running.submit(clips_with_sound, validation=[{"prompt": "a rabbit"}])
    response = running.wait(request)
    assert response.status_code == 200, response.text
    result = response.json()
    with safe_open(running.download(result["lora_file"], tmp_path / "l"), "pt") as tensors:
        assert any("audio_to_video_attn" in name for name in tensors.keys())  # noqa: SIM118
    with av.open(str(running.download(result["video"], tmp_path / "reel.mp4"))) as container:
        assert container.streams.audio


def test_second_run_reuses_what_was_prepared(running: Stack, clips: Path) -> None:
    """The second trains something else on it (to its end: `test_a_check_then_its_training`)."""
    for rank in (8, 16):
        request = running.submit(clips, rank=rank)
        running.wait_for_step(request, 1)
        running.http.put(request["cancel_url"])
        running.wait(request)
    assert "prepared before" in running.log(request)
    assert running.http.get(request["response_url"] + "/report").status_code == 200


@pytest.mark.parametrize(
    ("files", "fields", "message", "field"),
    [
        pytest.param(
            [("a.mp4", "bunny")],
            {"number_of_frames": 121, "frame_rate": 24, "with_audio": None, "trim": 1},
            "All training videos are too short to be trainable",
            "training_data_url",
            id="all too short",
        ),
        pytest.param(
            [("a.mp4", "carphone")],
            {"with_audio": True},
            "a.mp4",
            "with_audio",
            id="with_audio, but silent",
        ),
        pytest.param(
            [("a.mp4", b"<html>not a video</html>")],
            {},
            "a.mp4",
            "training_data_url",
            id="not a video",
        ),
        pytest.param([], {}, "no usable media", "training_data_url", id="empty archive"),
    ],
)
def test_bad_dataset_is_a_422_with_a_report(
    running: Stack,
    tmp_path: Path,
    files: list[tuple[str, str | bytes]],
    fields: dict[str, object],
    message: str,
    field: str,
) -> None:
    real = {"bunny": "bigbuckbunny.mp4", "carphone": "carphone_pristine.mp4"}
    fields = dict(fields)
    if fields.pop("trim", None):
        files = [("a.mp4", "carphone")]  # 120 frames, one short of 121
    archive = zip_of(
        tmp_path / "bad.zip",
        *(
            (name, real_clip(real[what]) if isinstance(what, str) else what.decode())
            for name, what in files
        ),
    )
    request = running.submit(archive, **fields)
    response = running.wait(request, 60)
    assert response.status_code == 422, response.text
    assert response.headers["x-fal-billable-units"] == "0"
    (detail,) = response.json()["detail"]
    assert message in detail["msg"]
    assert detail["loc"] == ["body", field]
    status = running.status(request)
    assert status["status"] == "COMPLETED"
    assert status["error"]
    report = running.http.get(request["response_url"] + "/report")
    assert report.status_code == 200
    assert report.json()["verdict"] == "refused"


def test_url_that_is_not_there(running: Stack) -> None:
    unsigned = running.service.url + "/files/uploads/none/x.zip"
    at_once = running.http.post("/t2v", json={"training_data_url": unsigned})
    assert at_once.status_code == 422, at_once.text
    assert at_once.json()["detail"][0]["type"] == "file_download_error"
    url = "https://nowhere.invalid/x.zip"
    request = running.http.post("/t2v", json={"training_data_url": url}).json()
    answer = running.wait(request, 60)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["type"] == "file_download_error"


def test_cancel_while_training_then_the_next_one_runs(running: Stack, clips: Path) -> None:
    request = running.submit(clips, number_of_steps=20000)
    running.wait_for_step(request, 5)
    assert running.http.put(request["cancel_url"]).status_code == 202
    response = running.wait(request, 30)
    assert response.status_code == 499
    assert running.status(request)["error_type"] == "client_cancelled"
    assert running.http.put(request["cancel_url"]).status_code == 400
    assert running.wait(running.submit(clips)).status_code == 200
