"""What a worker's machine is asked before it takes work, and by `reelsmith doctor`."""

import json
import sys
from pathlib import Path

import pytest

from app import machine
from app.machine import Finding
from app.settings import Settings
from trainer.tiny import build_tiny

COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


def model_folder(folder: Path) -> Path:
    for name in COMPONENTS:
        (folder / name).mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "a.safetensors").touch()
    return folder


def test_a_model_that_is_none(tmp_path: Path) -> None:
    def found(name: object) -> Finding:
        return machine.model(Settings(data_dir=tmp_path, model=str(name)))

    assert found("tiny").state == "ok"
    assert found("no such model").state == "fail"
    assert found("nobody/nothing-of-that-name").state == "warn"
    unreadable = found(f"/{'x' * 300}")
    assert (unreadable.state, "too long" in unreadable.says) == ("fail", True)
    folder = model_folder(tmp_path / "model")
    (folder / "vae").rmdir()
    assert "lacks vae" in found(folder).says
    (folder / "vae").mkdir()
    index = folder / "transformer" / machine.INDEXES[0]
    index.write_text(json.dumps({"weight_map": {"x": "b.safetensors"}}))
    assert "lacks b.safetensors" in found(folder).says
    index.unlink()
    foreign = found(folder)
    assert foreign.state == "fail", "no LTX-2.3, says the trainer"
    assert "not an LTX-2 model" in foreign.says


def test_a_download_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no reason to take nothing: the next training fetches the rest."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    part = model_folder(tmp_path / "models--somebody--ltx" / "snapshots" / "0")
    (part / "vae").rmdir()
    settings = Settings(data_dir=tmp_path, model="somebody/ltx")
    found = machine.model(settings)
    assert (found.state, "lacks vae" in found.says) == ("warn", True)
    assert "hf download somebody/ltx" in found.advice
    assert machine.unfit(settings) is None


def test_what_is_heavy_runs_in_a_process_of_its_own() -> None:
    loaded = set(sys.modules)
    found = [*machine.torch(), machine.media()]
    assert [finding.name for finding in found][:2] == ["torch", "gpu"]
    assert found[0].state == found[-1].state == "ok"
    assert set(sys.modules) - loaded <= {"_posixsubprocess"}


@pytest.mark.parametrize(
    ("code", "missing", "error"),
    [
        ("import nothing_of_that_name", True, "ModuleNotFoundError"),
        ("import os; os.kill(os.getpid(), 9)", False, "ended with -9"),
        ("raise OSError('libcuda.so.1')", False, "OSError: libcuda.so.1"),
    ],
)
def test_a_probe_that_dies(code: str, missing: bool, error: str) -> None:
    probed = machine.probe(code)
    assert probed.answer is None
    assert probed.missing is missing
    assert probed.error.startswith(error)


def test_the_official_file_needs_its_text_encoder(tmp_path: Path) -> None:
    file = tmp_path / "ltx-2.3-22b-dev.safetensors"
    file.touch()
    alone = machine.model(Settings(data_dir=tmp_path, model=str(file)))
    assert (alone.state, "REELSMITH_TEXT_ENCODER" in alone.advice) == ("fail", True)
    both = machine.model(Settings(data_dir=tmp_path, model=str(file), text_encoder=tmp_path))
    assert (both.state, "converts it" in both.says) == ("ok", True)


def test_a_machine_that_can_work_and_one_that_cannot(tmp_path: Path) -> None:
    def lacking(model: str) -> Finding | None:
        return machine.unfit(Settings(data_dir=tmp_path, model=model))

    assert lacking("tiny") is None
    assert lacking("nobody/downloaded-when-needed") is None
    folder = tmp_path / "model"
    gone = lacking(str(folder))
    assert gone is not None
    assert (gone.name, str(folder) in gone.says) == ("model", True)
    build_tiny(folder)
    assert lacking(str(folder)) is None


@pytest.mark.parametrize(
    ("num_gpus", "wanted", "says"),
    [(0, 1, "a driver is missing"), (1, 1, None), (1, 4, "1, and 4 for each job"), (8, 4, None)],
)
def test_gpus_that_are_too_few(num_gpus: int, wanted: int, says: str | None) -> None:
    found = machine.too_few(num_gpus, wanted)
    assert (found is None) == (says is None)
    assert found is None or says is None or says in found.says
