"""The commands from outside: what they print, what they leave, and their exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import service as services
from app.db.engine import Database
from app.db.models import Stage
from app.dev import free_port
from app.requests import lifecycle
from app.requests.lifecycle import Log
from tests.app.client.conftest import KEY, OTHER, Command, Served, serving
from tests.app.conftest import put, row, submit
from tests.app.test_lifecycle import claimed, do

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@pytest.fixture(autouse=True)
def here(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELSMITH_URL", served.url)


def newest(database: Database) -> Any:
    from sqlalchemy import select

    from app.db.models import Request

    with database.read() as session:
        return session.scalars(select(Request).order_by(Request.number.desc())).first()


def read(url: str) -> bytes:
    return httpx.get(url, trust_env=False).content


def test_submit_a_folder(served: Served, command: Command, clips: Path) -> None:
    fields = ("-F", "rank=16", "-F", "trigger_phrase=tronl cat", "--prompt", "a cat")
    done = command("submit", "t2v", clips, "--no-wait", "--priority", "low", *fields)
    assert done.exit_code == 0, done.output
    request_id = done.stdout.strip()
    assert UUID.fullmatch(request_id), "stdout has the id and nothing else"
    for said in (
        "2 videos, 1 caption",
        "notes.psd: not a kind of file",
        "more/dog.MOV: without a caption",
        "uploading clips.zip",
        f"request {request_id}, 0 before it",
    ):
        assert said in done.stderr
    stored = row(served.database, request_id)
    assert stored.mode == "t2v"
    assert stored.priority == 1
    assert stored.input["rank"] == 16
    assert stored.input["trigger_phrase"] == "tronl cat"
    assert stored.input["validation"] == [{"prompt": "a cat"}]
    with zipfile.ZipFile(BytesIO(read(stored.input["training_data_url"]))) as archive:
        assert archive.namelist() == ["cat.mp4", "cat.txt", "more/dog.MOV", "notes.psd"]
    assert [path.name for path in clips.parent.iterdir() if path.suffix == ".zip"] == []


def test_submit_with_files_and_a_webhook(served: Served, command: Command, clips: Path) -> None:
    archive = clips.parent / "given.zip"
    with zipfile.ZipFile(archive, "w") as sink:
        sink.writestr("a.mp4", "a")
        sink.writestr("a_mask.png", "m")
    inputs = clips.parent / "input.json"
    inputs.write_text(json.dumps({"rank": 8, "number_of_steps": 300}))
    preview = ("--prompt", "b", "--video", clips / "cat.mp4", "--mask", "https://example.com/m.png")
    webhook = ("--webhook", "https://example.com/hook?a=b")
    done = command(
        *("submit", "fal-ai/ltx23-trainer-v2/inpaint", archive, "--no-wait", "--json"),
        *("--input", inputs, "-F", "rank=64", *preview, *webhook),
    )
    assert done.exit_code == 0, done.output
    stored = row(served.database, json.loads(done.stdout)["request_id"])
    assert (stored.input["rank"], stored.input["number_of_steps"]) == (64, 300)
    assert stored.webhook_url == "https://example.com/hook?a=b"
    (entry,) = stored.input["validation"]
    assert read(entry["video_url"]) == b"a" * 3000
    assert entry["mask_url"] == "https://example.com/m.png"


def test_a_url_is_passed_on(served: Served, command: Command) -> None:
    done = command("submit", "t2v", "https://example.com/a.zip", "--no-wait")
    assert done.exit_code == 0, done.output
    assert newest(served.database).input["training_data_url"] == "https://example.com/a.zip"


USAGE = {
    "a wrong field": (["t2v", "CLIPS", "-F", "rank=33"], "rank: Input should be 8"),
    "two wrong fields": (
        ["t2v", "CLIPS", "-F", "rank=33", "-F", "number_of_steps=1"],
        "number_of_steps: ",
    ),
    "a mode that is none": (["t3v", "CLIPS"], "no t3v; it may have "),
    "a mode that generates": (["outpaint/lora", "CLIPS"], "reelsmith generate CLIP --lora LORA"),
    "its full id": (
        ["fal-ai/ltx-2.3-quality/outpaint/lora", "CLIPS/cat.mp4"],
        "reelsmith generate CLIP --lora LORA",
    ),
    "no clips": (["t2v", "CLIPS/.git"], "nothing to train on"),
    "no folder": (["t2v", "nowhere"], "no folder, zip or URL 'nowhere'"),
    "no zip": (["t2v", "CLIPS/cat.mp4"], "neither a folder nor a zip"),
    "no field": (["t2v", "CLIPS", "-F", "rank"], "write name=value"),
    "no preview video": (["inpaint", "CLIPS", "--prompt", "a"], "video_url: Field required"),
    "a preview video that is not here": (
        ["extend-suffix", "CLIPS", "--prompt", "a", "--video", "gone.mp4"],
        "validation.0.video_url: 'gone.mp4' is neither",
    ),
    "a webhook that is no URL": (["t2v", "CLIPS", "--webhook", "x"], "fal_webhook: "),
    "a full download folder": (["t2v", "CLIPS", "--download", "CLIPS"], "holds other files"),
    "a download of nothing": (["t2v", "CLIPS", "--no-wait", "--download", "x"], "needs --wait"),
}


@pytest.mark.parametrize(("args", "says"), USAGE.values(), ids=USAGE)
def test_refused_before_anything_is_sent(
    served: Served, command: Command, clips: Path, args: list[str], says: str
) -> None:
    done = command("submit", *(arg.replace("CLIPS", str(clips)) for arg in args))
    assert done.exit_code == 2
    assert says in done.stderr
    assert newest(served.database) is None
    assert served.storage.list_keys("uploads") == served.storage.list_keys("parts") == []


def test_a_folder_that_cant_be_written_is_refused_before_a_training(
    served: Served, command: Command, clips: Path
) -> None:
    # Root may write wherever there is a folder, so there is a file in its place.
    (clips.parent / "file").write_text("")
    done = command("submit", "t2v", clips, "--download", clips.parent / "file" / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "can't be written" in done.stderr
    assert newest(served.database) is None


def test_the_same_command_again_starts_no_second_training(
    served: Served, command: Command, clips: Path
) -> None:
    out = clips.parent / "out"
    out.mkdir()
    (out / "request.json").write_text('{"request_id": "the-first"}')
    done = command("submit", "t2v", clips, "--download", out)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"reelsmith result the-first --download {out}" in done.stderr
    assert newest(served.database) is None


def test_a_field_that_the_mode_does_not_have(served: Served, command: Command, clips: Path) -> None:
    done = command("submit", "t2v", clips, "--no-wait", "-F", "number_of_step=100")
    assert done.exit_code == 0, "fal takes it too"
    assert "warning: t2v has no field 'number_of_step'; it changes nothing" in done.stderr


@pytest.mark.parametrize("id", ["", " "])
def test_an_empty_id(command: Command, id: str) -> None:
    for name in ("status", "logs", "result", "cancel", "save"):
        done = command(name, id)
        assert (done.exit_code, done.stderr) == (2, "the id of the request is empty\n"), name


def test_a_priority_that_is_none(command: Command, clips: Path) -> None:
    done = command("submit", "t2v", clips, "--no-wait", "--priority", "urgent")
    assert done.exit_code == 2
    assert "normal" in done.stderr


def test_a_request_from_its_end(served: Served, command: Command, tmp_path: Path) -> None:
    request_id = submit(served.database)
    held = served.train()
    do(served.database, lifecycle.progress, held, progress={"step": 7, "of": 100, "loss": 0.5},
       logs=[Log("encode_latents: 3.0 s"), Log("careful", "WARN")])  # fmt: skip

    running = command("status", request_id)
    assert running.exit_code == 0
    assert "step 7/100  loss 0.5000" in running.stdout
    early = command("result", request_id)
    assert (early.exit_code, early.stderr) == (2, "Request is still in progress\n")
    log = command("logs", request_id).stdout.splitlines()
    assert [line[9:] for line in log] == ["encode_latents: 3.0 s", "WARN: careful"]

    file = served.store("lora.safetensors", b"weights", tmp_path)
    served.complete(held, {"lora_file": file, "video": None})
    assert command("logs", request_id, "--follow").stdout.splitlines() == log
    brought = command("result", request_id, "--download", tmp_path / "out")
    assert brought.exit_code == 0, brought.output
    assert (tmp_path / "out" / "lora.safetensors").read_bytes() == b"weights"
    assert f"lora_file: {tmp_path}/out/lora.safetensors (7 B)" in brought.stdout
    assert "billed: 100 units" in brought.stdout
    as_json = json.loads(command("result", request_id, "--json").stdout)
    assert as_json["lora_file"]["file_size"] == 7
    assert json.loads(command("status", request_id, "--json").stdout)["status"] == "COMPLETED"
    assert command("cancel", request_id).exit_code == 2


@pytest.mark.parametrize("status", [422, 500, 503, 504])
def test_a_failed_request_says_why(served: Served, command: Command, status: int) -> None:
    """Also where its own status is one that the service has for "not now"."""
    request_id = submit(served.database)
    detail = [{"loc": ["body", "training_data_url"], "msg": "Not a zip.", "type": "x"}]
    do(served.database, lifecycle.fail, claimed(served.database), status=status,
       body={"detail": detail}, error="Not a zip.", error_type="x", retryable=False)  # fmt: skip
    done = command("result", request_id)
    assert done.exit_code == 1
    assert done.stderr == f"request {request_id} failed\n  training_data_url: Not a zip.\n"
    assert "failed" in command("status", request_id).stdout
    told = json.loads(command("result", request_id, "--json").stdout)
    assert told["error"] == ["training_data_url: Not a zip."]


def test_cancel(served: Served, command: Command) -> None:
    request_id = submit(served.database)
    assert command("cancel", request_id).exit_code == 0
    assert row(served.database, request_id).error_type == "client_cancelled"
    assert command("result", request_id).exit_code == 1
    listed = command("requests").stdout
    assert listed.splitlines()[0].endswith("  cancelled"), listed


@pytest.mark.parametrize("wish", ["save", "sample"])
def test_save_and_sample(served: Served, command: Command, wish: str) -> None:
    request_id = submit(served.database)
    input = {"training_data_url": "https://example.com/a.zip", "validation": [{"prompt": "a"}]}
    put(served.database, request_id, input=input)
    early = command(wish, request_id)
    assert early.exit_code == 2
    assert "not training yet" in early.stderr
    do(served.database, lifecycle.advance, claimed(served.database), {"key": "x"})
    claimed(served.database, Stage.TRAIN)
    assert command(wish, request_id).exit_code == 0
    assert list(lifecycle.wishes_of(row(served.database, request_id))) == [wish]


@pytest.mark.parametrize("name", ["status", "logs", "result", "cancel", "save", "sample"])
def test_an_id_that_is_none(command: Command, name: str) -> None:
    done = command(name, "0" * 8)
    assert (done.exit_code, done.stderr[:27]) == (2, "There is no such request (o")


def test_the_list(served: Served, command: Command) -> None:
    assert command("requests").stderr == "no requests yet\n"
    ids = [submit(served.database) for _ in range(3)]
    page = command("requests", "--limit", "2")
    assert [line.split()[0] for line in page.stdout.splitlines()] == ids[:0:-1]
    assert "in the queue" in page.stdout
    older = command("requests", "--before", ids[1])
    assert f"--before {ids[1]}" in page.stderr
    assert [line.split()[0] for line in older.stdout.splitlines()] == ids[:1]
    as_json = json.loads(command("requests", "--json").stdout)
    assert [found["request_id"] for found in as_json["requests"]] == ids[::-1]


def test_nobody_answers(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "PAUSES_S", ())
    done = command("requests", "--host", f"127.0.0.1:{free_port()}")
    assert done.exit_code == 3
    assert "can't be reached" in done.stderr


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Served]:
    url = f"sqlite:///{tmp_path / 'guarded.db'}"
    with serving(tmp_path / "guarded", url, api_keys=f"{KEY},{OTHER}") as guarded:
        yield guarded


def test_keys_come_from_a_file_or_the_environment(
    guarded: Served, command: Command, tmp_path: Path
) -> None:
    at = ("requests", "--host", guarded.url)
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert command(*at, "--key-file", file).exit_code == 0
    assert command(*at, "--key-file", file, FAL_KEY="wrong").exit_code == 0
    assert command(*at, FAL_KEY=OTHER).exit_code == 0
    assert command(*at, REELSMITH_KEY=KEY, FAL_KEY="wrong").exit_code == 0
    refused = command(*at, REELSMITH_KEY="wrong", FAL_KEY=KEY)
    assert refused.exit_code == 2
    assert "Invalid key" in refused.stderr
    assert "REELSMITH_KEY" in refused.stderr
    assert "wrong" not in refused.stderr
    assert command(*at).exit_code == 2
    assert command(*at, "--key-file", tmp_path / "none").exit_code == 2
    file.write_text("\n")
    assert command(*at, "--key-file", file).exit_code == 2


def test_ctrl_c_leaves_the_request_alone(served: Served, clips: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("REELSMITH")}
    started = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "submit", "t2v", str(clips)],
        env={**env, "REELSMITH_URL": served.url},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stderr is not None
    said = ""
    while "in the queue" not in said:
        line = started.stderr.readline()
        assert line, said
        said += line
    started.send_signal(signal.SIGINT)
    out, rest = started.communicate(timeout=60)
    found = newest(served.database)
    assert started.returncode == 130
    assert found.state == "queued"
    assert found.cancel_requested_at is None
    assert f"request {found.id} goes on without this command" in rest
    assert f"reelsmith logs {found.id} --follow" in rest
    assert "Traceback" not in rest
    assert out == ""


def test_a_check_is_a_request_of_its_own(served: Served, command: Command, clips: Path) -> None:
    done = command("submit", "t2v", clips, "--check", "--no-wait")
    assert done.exit_code == 0, done.stderr
    assert newest(served.database).purpose == "check"
