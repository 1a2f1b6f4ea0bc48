"""``python -m preprocessing``: what the worker starts, and people by hand."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from preprocessing.__main__ import main
from preprocessing.cli import EXIT_DISK_FULL
from preprocessing.manifest import Manifest
from preprocessing.report import DatasetReport
from preprocessing.rules import DatasetRule
from tests.preprocessing.zips import zip_of
from workers.children import ChildProcess

RULE = DatasetRule(num_frames=9, frame_rate=24, width=96, height=64)
ROOT = Path(__file__).parents[2]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "preprocessing", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_text(RULE.model_dump_json())
    return path


def test_ready(carphone: Path, spec: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": carphone, "b.mp4": carphone})
    out, debug = tmp_path / "new" / "out", tmp_path / "debug.zip"
    done = command(
        archive, "--spec", spec, "--out", out, "--processes", 2, "--debug-archive", debug
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "fit 2/2" in done.stdout
    assert "2 samples from 2 of 2 clips" in done.stdout
    assert len(Manifest.load(out).samples) == 2
    kinds = {json.loads(line)["kind"] for line in (out / "events.jsonl").read_text().splitlines()}
    assert kinds == {"stage", "progress", "log"}
    again = tmp_path / "again.zip"
    assert command("debug", out, "--out", again).returncode == 0
    with zipfile.ZipFile(debug) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()


def test_refused(spec: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.txt": b"only a caption"})
    done = command(archive, "--spec", spec, "--out", tmp_path / "out", "--quiet")
    assert done.returncode == 2
    assert done.stderr.startswith("refused: The archive has no usable media")
    assert done.stdout == ""
    assert DatasetReport.load(tmp_path / "out").verdict == "refused"


WRONG = {
    "no archive": (["missing.zip", "--out", "out"], "there is no file or folder"),
    "no such option": (["a.zip", "--fast", "--out", "out"], "unrecognized arguments: --fast"),
    "no processes": (["a.zip", "--out", "out", "--processes", "0"], "at least 1, not 0"),
    "no dataset to debug": (["debug", "nowhere", "--out", "x.zip"], "nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_no_refusal(case: str, spec: Path, tmp_path: Path) -> None:
    zip_of(tmp_path / "a.zip", {})
    arguments, words = WRONG[case]
    given = [str(tmp_path / a) if a in ("a.zip", "out", "x.zip") else a for a in arguments]
    done = command(*given, *([] if given[0] == "debug" else ["--spec", spec]))
    assert done.returncode == 1
    assert words in done.stderr


def test_a_spec_that_is_none(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(RULE.model_dump_json().replace('"num_frames":9', '"num_frames":10'))
    archive = zip_of(tmp_path / "a.zip", {})
    done = command(archive, "--spec", spec, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "num_frames must be 8k + 1, not 10" in done.stderr


def test_a_full_disk_has_a_code_of_its_own(
    carphone: Path, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By which the worker tells it from a crash."""
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": carphone})
    arguments = [str(archive), "--spec", str(spec), "--out", str(tmp_path / "out")]
    assert main(arguments) == EXIT_DISK_FULL
    assert ChildProcess.DISK_FULL == EXIT_DISK_FULL
