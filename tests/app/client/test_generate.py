"""`reelsmith generate` from outside, at a gateway whose workers are played by the tests."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from app.client import generate
from app.client.errors import Refused
from app.client.generate import lora_of
from app.client.service import Service
from app.db.models import Request
from app.requests import lifecycle
from tests.app.client.conftest import Command, Served
from tests.app.conftest import row, submit
from tests.app.test_lifecycle import claimed, do

PROMPT = ("--prompt", "a wide meadow")
REPORT = {
    "version": 1,
    "verdict": "ok",
    "problem": None,
    "facts": {"width": 1280, "height": 720, "num_frames": 132, "audio": {"codec": "aac"}},
    "canvas": {"width": 1024, "height": 576},
    "source": {
        "placement": {"left": 96, "top": 64, "width": 800, "height": 448},
        "num_frames": 121,
        "frame_rate": "24",
        "notes": ["video_url lies in the middle."],
    },
    "loras": [
        {
            "name": "mine.safetensors",
            "size_bytes": 5_000_000,
            "num_layers": 3,
            "ranks": [8],
            "has_audio": False,
            "description": "3 layers of rank 8",
        }
    ],
}


@pytest.fixture(autouse=True)
def here(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELSMITH_URL", served.url)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "clip.mp4").write_bytes(b"clip")
    (tmp_path / "mine.safetensors").write_bytes(b"lora")
    return tmp_path


def newest(served: Served) -> Any:
    with served.database.read() as session:
        return session.scalars(select(Request).order_by(Request.number.desc())).first()


def read(url: str) -> bytes:
    return httpx.get(url, trust_env=False).content


def trained(served: Served, folder: Path) -> str:
    """A training that has ended with a LoRA."""
    request_id = submit(served.database)
    file = served.store("lora.safetensors", b"trained", folder)
    served.complete(served.train(), {"lora_file": file})
    return request_id


def test_files_and_a_training(served: Served, command: Command, files: Path) -> None:
    training = trained(served, files)
    done = command(
        *("generate", files / "clip.mp4", *PROMPT, "-F", "num_frames=33", "--no-wait"),
        *("--lora", f"{files / 'mine.safetensors'}:0.5", "--lora", training),
        *("--lora", "https://example.com/c.safetensors:-1"),
    )
    assert done.exit_code == 0, done.output
    stored = row(served.database, done.stdout.strip())
    assert (stored.mode, stored.input["num_frames"]) == ("outpaint/lora", 33)
    assert stored.input["prompt"] == PROMPT[1]
    assert read(stored.input["video_url"]) == b"clip"
    first, second, third = stored.input["loras"]
    assert (read(first["path"]), first["scale"]) == (b"lora", 0.5)
    assert (read(second["path"]), second["scale"]) == (b"trained", 1)
    assert (third["path"], third["scale"]) == ("https://example.com/c.safetensors", -1)
    assert "uploading mine.safetensors" in done.stderr


def test_wrong_fields_cost_no_upload(served: Served, command: Command, files: Path) -> None:
    done = command(
        *("generate", files / "clip.mp4", "--lora", files / "mine.safetensors"),
        *("-F", "num_frames=5", "-F", "video_quality=best"),
    )
    assert done.exit_code == 2
    assert "prompt: Field required" in done.stderr
    assert "num_frames: Input should be greater than or equal to 9 (given: 5)" in done.stderr
    assert "video_quality: " in done.stderr
    assert "uploading" not in done.stderr
    assert newest(served) is None


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        ("nowhere.safetensors", "neither a file here, nor a URL, nor the id of a training"),
        ("00000000-0000-4000-8000-000000000000", "no such request"),
        ("https://example.com/a.safetensors:nan", "the scale behind the colon is no number"),
    ],
)
def test_loras_that_are_none(command: Command, files: Path, lora: str, says: str) -> None:
    done = command("generate", files / "clip.mp4", *PROMPT, "--lora", lora)
    assert done.exit_code == 2
    assert says in done.stderr


def test_what_submit_or_nobody_takes(served: Served, command: Command, files: Path) -> None:
    """A training's mode, and fields that are no list and no JSON."""
    done = command("generate", files / "clip.mp4", *PROMPT, "--mode", "t2v")
    assert (done.exit_code, newest(served)) == (2, None)
    assert "reelsmith submit t2v CLIPS" in done.stderr
    done = command("generate", files / "clip.mp4", *PROMPT, "-F", "loras=5")
    assert (done.exit_code, newest(served)) == (2, None)
    assert "loras: Input should be a valid array" in done.stderr
    (files / "fields.json").write_text('{"source_scale": NaN}')
    done = command("generate", files / "clip.mp4", *PROMPT, "--input", files / "fields.json")
    assert (done.exit_code, newest(served)) == (2, None)
    assert "fields.json is not JSON: NaN" in done.stderr


def test_a_request_without_a_lora(served: Served, service: Service) -> None:
    request_id = submit(served.database)
    with pytest.raises(Refused, match="still in progress"):
        lora_of(service, request_id)
    served.complete(served.train(), {"ok": True})
    with pytest.raises(Refused, match="made no LoRA"):
        lora_of(service, f"{request_id}:0.5")


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("https://example.com:8000/a", "https://example.com:8000/a", None),
        ("https://example.com/a:0.25", "https://example.com/a", 0.25),
        ("a.safetensors", "a.safetensors", None),
        ("a:b.safetensors:2", "a:b.safetensors", 2),
    ],
)
def test_the_scale_stands_behind(
    service: Service, text: str, path: str, scale: float | None
) -> None:
    assert lora_of(service, text) == {"path": path, **({"scale": scale} if scale else {})}


def test_followed_and_brought_here(served: Served, command: Command, files: Path) -> None:
    """The video of a request that is done at once, as a file and as a data URI."""
    lora = ("--lora", "https://example.com/c.safetensors")
    for inline in (False, True):
        command("generate", files / "clip.mp4", *PROMPT, *lora, "--no-wait")
        request_id = newest(served).id
        video = served.store("video.mp4", b"video", files)
        body = {"video": {**video, "inline": inline}, "seed": 7, "prompt": "a"}
        served.complete(served.train(), body)
        out = files / f"out-{inline}"
        done = command("result", request_id, "--download", out)
        assert done.exit_code == 0, done.output
        assert (out / "video.mp4").read_bytes() == b"video"
        assert "data:" not in done.stdout


def test_a_check_says_what_the_files_are(served: Served, command: Command, files: Path) -> None:
    """The report of a check, printed; exit code 1 where a file was refused."""
    lines = generate.report_lines(REPORT)
    assert lines == [
        "source   1280x720, 132 frames, with sound",
        "canvas   1024x576",
        "kept     800x448 at 96,64, 121 frames",
        "         video_url lies in the middle.",
        "lora     mine.safetensors: 3 layers of rank 8 (5.0 MB)",
    ]
    refused = {**REPORT, "verdict": "refused", "problem": {"message": "cut off"}, "loras": []}
    assert generate.report_lines(refused)[-1] == "refused: cut off"
    lora = ("--lora", "https://example.com/c.safetensors")
    command("generate", files / "clip.mp4", *PROMPT, *lora, "--check", "--no-wait")
    request = newest(served)
    assert (request.mode, request.purpose) == ("outpaint/lora", "check")
    path = files / "report.json"
    path.write_text(json.dumps(refused))
    served.storage.put_file(f"{request.storage_prefix}/report.json", path)
    do(served.database, lifecycle.complete, claimed(served.database), {"ok": True}, 0, 1.0)
    with Service(served.url) as service:
        assert generate.show_report(service, service.find(request.id), as_json=False) == 1
