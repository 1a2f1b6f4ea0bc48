"""From a training to a video that is made with its LoRA, through the real service."""

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_torch

from app.storage import make_storage
from preprocessing.events import EventLog
from preprocessing.prepare_source import prepare_source
from preprocessing.rules import SourceRule
from tests.app.webhooks.receiver import Receiver
from tests.service import harness
from tests.service.harness import Stack, kill_group, upload
from tests.service.test_readme import example

pytestmark = [pytest.mark.service, pytest.mark.timeout(300)]

PATH = "outpaint/lora"
WIDTH, HEIGHT, FRAMES = 252, 144, 12
SMALL: dict[str, Any] = {
    "prompt": "a rabbit in a wide meadow",
    "resolution": {"width": WIDTH, "height": HEIGHT},
    "num_frames": FRAMES,
    "num_inference_steps": 8,
    "seed": 7,
}
"""A generation that the tiny model does in seconds. Neither its width nor its number of frames is
on the model's grid, so that the result must be cut back."""
SLOW = {"num_frames": 49, "num_inference_steps": 30, "guidance_scale": 2, "generate_audio": False}
"""One that lasts long enough to be disturbed."""
SEAM_PIXELS = 16
LEAST_PSNR = 39.0
"""In dB, of the brightness of the kept region at `maximum` quality; 41.2 was measured (34.2 in RGB,
since yuv420p halves the resolution of colours)."""


@dataclass(frozen=True)
class Loop:
    """What the README's loop left: a LoRA, and a video made with it."""

    training: str
    generation: dict[str, Any]
    """As a submit answers it."""
    lora: str
    said: str


@pytest.fixture(scope="module")
def loop(
    running: Stack, clips: Path, bunny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Loop:
    """The README's example, run as it is printed with a smaller training and video."""
    folder = tmp_path_factory.mktemp("loop")
    shutil.copy(clips, folder / "clips.zip")
    shutil.copy(bunny, folder / "clip.mp4")
    client = example("python", 'client.upload_file("clips.zip"), "number_of_steps"')
    client = client.partition("result = ")[0]
    code = example("python", PATH)
    fields = json.dumps(harness.SMALL)[1:-1]
    code = code.replace('"number_of_steps": 1000', fields).replace("[640, 640]", "[384, 256]")
    more = {**SMALL, "video_quality": "maximum"}
    del more["prompt"]
    arguments = repr(more)[1:-1]
    code = code.replace('"prompt": "a rabbit', f'{arguments}, "prompt": "a rabbit')
    script = (client + code).replace("http://127.0.0.1:8000", running.service.url)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    generation, training = running.http.get("/requests").json()["requests"][:2]
    lora = running.http.get(training["response_url"]).json()["lora_file"]["url"]
    return Loop(training["request_id"], generation, lora, done.stdout)


@pytest.fixture(scope="module")
def source(running: Stack, bunny: Path) -> str:
    return upload(running.http, bunny)


def submit(running: Stack, path: str = PATH, **fields: Any) -> dict[str, Any]:
    response = running.http.post(f"/{path}", json={**SMALL, **fields})
    assert response.status_code == 200, response.text
    return dict(response.json())


def done(running: Stack, request: dict[str, Any]) -> dict[str, Any]:
    """The result of a request that must end well."""
    response = running.wait(request)
    assert response.status_code == 200, f"{response.text}\n{running.log(request)}"
    return dict(response.json())


@dataclass(frozen=True)
class Video:
    """What a file holds, as a decoder sees it."""

    frames: np.ndarray
    """uint8 [frames, height, width, 3]"""
    rate: Fraction
    sound_s: float | None


def video_of(path: Path) -> Video:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        sound = container.streams.audio
        sound_s = float(sound[0].duration * sound[0].time_base) if sound else None
    assert rate is not None
    return Video(frames, Fraction(rate), sound_s)


def luma(frames: np.ndarray) -> np.ndarray:
    """Rec. 709 brightness, 0 to 255: what a codec keeps at full resolution."""
    return frames @ np.array([0.2126, 0.7152, 0.0722])


def psnr_of(found: np.ndarray, wanted: np.ndarray) -> float:
    """In dB."""
    return float(10 * np.log10(255**2 / np.mean((found - wanted) ** 2)))


def test_the_readmes_loop(running: Stack, loop: Loop, bunny: Path, tmp_path: Path) -> None:
    """fal's client trains and generates; the video is what was asked for, and what was
    given is in it."""
    result = done(running, loop.generation)
    assert (result["seed"], result["prompt"]) == (SMALL["seed"], SMALL["prompt"])
    printed = loop.said.strip().splitlines()[-1]
    assert printed.partition("/requests/")[2] == result["video"]["url"].partition("/requests/")[2]
    assert result["video"]["content_type"] == "video/mp4"
    made = video_of(running.download(result["video"], tmp_path / "wider.mp4"))
    assert made.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert made.rate == 24
    assert made.sound_s == pytest.approx(FRAMES / 24, abs=0.1)

    rule = SourceRule(
        width=WIDTH, height=HEIGHT, num_frames=FRAMES, frame_rate=Fraction(24), source_scale=0.75
    )
    folder = tmp_path / "source"
    folder.mkdir()
    with EventLog(folder / "events.jsonl") as events:
        given = prepare_source(bunny, None, rule, folder, events)
    place, frames = given.placement, np.load(folder / given.frames)
    inside = made.frames[
        :, place.top : place.top + place.height, place.left : place.left + place.width
    ]
    whole = slice(SEAM_PIXELS, -SEAM_PIXELS)
    psnr = psnr_of(luma(inside[:, whole, whole]), luma(frames[:, whole, whole]))
    assert psnr > LEAST_PSNR, f"{psnr:.1f} dB"


def test_it_is_billed_and_told_of_as_others_are(running: Stack, loop: Loop) -> None:
    request = loop.generation
    response = running.http.get(request["response_url"])
    assert response.headers["x-fal-billable-units"] == "1"
    assert running.attempts(request) == [("prepare", "advanced"), ("train", "completed")]
    report = running.http.get(request["response_url"] + "/report").json()
    assert (report["verdict"], len(report["loras"])) == ("ok", 1)
    log = running.log(request)
    for said in ("LoRA lora.safetensors", "The prompt is not expanded", "The safety check is off"):
        assert said in log
    page = running.http.get(request["response_url"] + "/events").json()
    assert page["stage"] == "generate"
    steps = [event["data"] for event in page["events"] if event["kind"] == "step"]
    assert [step["step"] for step in steps] == list(range(1, 9))


def test_its_webhook(running: Stack, receiver: Receiver, loop: Loop, source: str) -> None:
    path = f"{PATH}?fal_webhook={receiver.url}"
    request = submit(running, path, loras=[{"path": loop.lora}], video_url=source)
    result = done(running, request)
    (told,) = receiver.wait_for(1)
    body = told.json
    assert (body["request_id"], body["status"]) == (request["request_id"], "OK")
    assert body["payload"].keys() == result.keys()
    video = running.http.get(body["payload"]["video"]["url"]).content
    assert video == running.http.get(result["video"]["url"]).content
    assert "x-fal-webhook-signature" in told.headers


def test_nothing_is_left_of_another_lora(
    running: Stack, loop: Loop, source: str, tmp_path: Path
) -> None:
    """One LoRA, another one, the first one again: the third video is the first to the byte. The
    files are known by then, and nothing is fetched or fitted twice."""
    file = tmp_path / "mine.safetensors"
    response = running.http.get(loop.lora)
    file.write_bytes(response.content)
    other = {name: -3 * tensor for name, tensor in load_file(file).items()}
    save_torch(other, tmp_path / "other.safetensors")
    second = upload(running.http, tmp_path / "other.safetensors")
    fields = {"video_url": source, "generate_audio": False, "sync_mode": True}
    made = []
    for path in (loop.lora, second, loop.lora):
        request = submit(running, loras=[{"path": path}], **fields)
        url = done(running, request)["video"]["url"]
        head, _, data = url.partition(";base64,")
        assert head == "data:video/mp4"
        made.append(base64.b64decode(data))
    assert made[0] == made[2]
    assert made[0] != made[1]
    log = running.log(request)
    assert "LoRA lora.safetensors is here already" in log
    assert "This source was prepared before" in log
    path = tmp_path / "silent.mp4"
    path.write_bytes(made[0])
    assert video_of(path).sound_s is None


def test_a_check(running: Stack, loop: Loop, source: str) -> None:
    """Without a GPU: what the files are, and what `auto` becomes."""
    fields = {"video_url": source, "loras": [{"path": loop.lora}], "resolution": "auto"}
    request = submit(running, f"{PATH}/check", **fields)
    result = done(running, request)
    assert running.attempts(request) == [("prepare", "completed")]
    assert running.http.get(request["response_url"]).headers["x-fal-billable-units"] == "0"
    report = result["report"]
    assert report == running.http.get(request["response_url"] + "/report").json()
    assert (report["facts"]["width"], report["facts"]["num_frames"]) == (1280, 132)
    assert report["canvas"] == {"width": 1024, "height": 576}
    assert report["loras"][0]["ranks"] == [8]
    assert result["estimate"]["price"]["billable_units"] == 8
    assert "lies at" in result["notes"][0]
    time = result["estimate"]["time"]
    assert (time["device"], time["reason"]) == ("cpu", None)
    assert time["steps"]["measurements"] >= 1
    assert time["total_seconds"] > time["writing"]["seconds"] > 0


Fields = dict[str, Any]


def a_page(running: Stack, folder: Path) -> str:
    """What many a broken link leads to."""
    page = folder / "page.mp4"
    page.write_text("<html>gone</html>")
    return upload(running.http, page)


def source_that_is_none(running: Stack, folder: Path) -> Fields:
    return {"video_url": a_page(running, folder)}


def source_that_is_gone(running: Stack, folder: Path) -> Fields:
    """Its URL's signature holds."""
    url = a_page(running, folder)
    key = re.search(r"uploads/[0-9a-f]+/page\.mp4", url)
    assert key is not None
    make_storage(running.service.settings).delete(key[0])
    return {"video_url": url}


def source_that_fills_the_canvas(running: Stack, folder: Path) -> Fields:
    return {"source_scale": 1, "resolution": {"width": 256, "height": 144}}


def lora_that_is_none(running: Stack, folder: Path) -> Fields:
    return {"loras": [{"path": a_page(running, folder)}]}


def lora_of_a_larger_model(running: Stack, folder: Path) -> Fields:
    """Only the model itself shows that; it is seen before the model is loaded."""
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    pair = {"lora_A": (4, 4096), "lora_B": (4096, 4)}
    tensors = {f"{layer}.{name}.weight": np.ones(s, np.float32) for name, s in pair.items()}
    save_file(tensors, folder / "large.safetensors")
    return {"loras": [{"path": upload(running.http, folder / "large.safetensors")}]}


LORA = ["loras", 0, "path"]


@pytest.mark.parametrize(
    ("bad", "says", "loc"),
    [
        (source_that_is_none, "not a video", ["video_url"]),
        (source_that_is_gone, "not stored", ["video_url"]),
        (source_that_fills_the_canvas, "nothing is left to generate", ["source_scale"]),
        (lora_that_is_none, "safetensors", LORA),
        (lora_of_a_larger_model, "for another model", LORA),
    ],
)
def test_files_that_can_not_be_used(
    running: Stack,
    loop: Loop,
    source: str,
    tmp_path: Path,
    bad: Callable[[Stack, Path], Fields],
    says: str,
    loc: list[str | int],
) -> None:
    """COMPLETED with the reason, at the field to blame, for nothing."""
    good = {"video_url": source, "loras": [{"path": loop.lora}]}
    request = submit(running, **{**good, **bad(running, tmp_path)})
    response = running.wait(request)
    assert response.status_code == 422, response.text
    assert response.headers["x-fal-billable-units"] == "0"
    (detail,) = response.json()["detail"]
    assert detail["loc"] == ["body", *loc]
    assert says in detail["msg"]
    status = running.status(request)
    assert (status["status"], status["error"]) == ("COMPLETED", detail["msg"])


def test_kill_9_of_the_worker(running: Stack, loop: Loop, source: str) -> None:
    """It is made again, and billed once."""
    request = submit(running, video_url=source, loras=[{"path": loop.lora}], **SLOW)
    running.wait_for_step(request, 2)
    kill_group(running.gpu_worker)
    running.gpu_worker.start(running.service.env)
    result = done(running, request)
    assert running.attempts(request) == [
        ("prepare", "advanced"),
        ("train", "lost"),
        ("train", "completed"),
    ]
    response = running.http.get(request["response_url"])
    assert response.headers["x-fal-billable-units"] == "2"
    assert running.http.get(result["video"]["url"]).status_code == 200


def test_cancel_between_steps(running: Stack, loop: Loop, source: str) -> None:
    """And the command line, which comes next, finds the worker free."""
    large = {**SLOW, "resolution": {"width": 512, "height": 288}, "num_frames": 97}
    request = submit(running, video_url=source, loras=[{"path": loop.lora}], **large)
    running.wait_for_step(request, 1)
    assert running.http.put(request["cancel_url"]).status_code == 202
    assert running.wait(request, 60).status_code == 499
    assert max(event["data"]["step"] for event in running.events(request, "step")) < 30


def test_on_the_command_line(running: Stack, loop: Loop, bunny: Path, tmp_path: Path) -> None:
    fields = {name: value for name, value in SMALL.items() if name not in ("prompt", "seed")}
    command = [sys.executable, "-m", "app.cli", "generate", str(bunny)]
    command += ["--lora", f"{loop.training}:0.5", "--prompt", "a meadow"]
    command += [f"-F{name}={json.dumps(value)}" for name, value in fields.items()]
    command += ["--download", str(tmp_path / "wide"), "--host", running.service.url]
    said = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert said.returncode == 0, said.stderr
    assert "billed: 1 units" in said.stdout
    made = video_of(tmp_path / "wide" / "video.mp4")
    assert made.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert made.sound_s is not None
