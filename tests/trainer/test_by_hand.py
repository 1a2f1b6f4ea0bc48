"""``python -m trainer generate``: every mode, what is refused and how, Ctrl-C."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from preprocessing.events import EventLog
from tests.trainer.generations import played
from trainer.model import BaseModel
from trainer.single_file import to_single_file

BY_HAND: dict[str, tuple[list[str], tuple[int, int, int]]] = {
    "t2v": (["--lora", "LORA:0.5", "--size", "90x64"], (9, 64, 90)),
    "outpaint": (["--source", "CLIP", "--size", "128x96", "--source-scale", "0.5"], (9, 96, 128)),
    "inpaint": (["--source", "CLIP", "--mask", "MASK", "--size", "96x64"], (9, 64, 96)),
    "extend-suffix": (["--source", "CLIP", "--size", "64x64", "--frames", "17"], (17, 64, 64)),
    "extend-prefix": (
        ["--source", "CLIP", "--size", "64x64", "--frames", "17", "--window", "first"],
        (17, 64, 64),
    ),
}


@pytest.fixture
def by_hand(
    tmp_path: Path, cache: Path, bunny: Path, lora: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """``python -m trainer generate ...`` in this process; the exit code and what was printed."""
    from trainer.__main__ import main

    mask = np.zeros((64, 96), np.uint8)
    mask[:, 48:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = {"LORA": lora, "CLIP": bunny, "MASK": tmp_path / "mask.png"}

    def run(mode: str, *arguments: str) -> tuple[int, str]:
        words = ["trainer", "generate", "--mode", mode, "--prompt", "a rabbit", "--seed", "1"]
        words += ["--cache", str(cache), "--steps", "1", "--device", "cpu", "--frames", "9"]
        for name, path in files.items():
            arguments = tuple(word.replace(name, str(path)) for word in arguments)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*words, "--out", str(tmp_path / "out.mp4"), *arguments])
            code = main()
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.mark.parametrize("mode", BY_HAND)
def test_by_hand(mode: str, by_hand: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    arguments, shape = BY_HAND[mode]
    code, said = by_hand(mode, *arguments)
    assert code == 0, said
    assert played(tmp_path / "out.mp4").frames.shape == (*shape, 3)
    frames, height, width = shape
    assert f"out.mp4: {width}x{height}, {frames} frames at 24 per second, seed 1" in said
    assert "generate 1/1" in said


def test_by_hand_refusals(by_hand: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """A source that can't be used: exit code 2, and why."""
    text = tmp_path / "clip.mp4"
    text.write_text("no video")
    code, said = by_hand("outpaint", "--source", str(text))
    assert (code, "refused: clip.mp4" in said) == (2, True), said
    assert not (tmp_path / "out.mp4").exists()


USAGE: dict[str, tuple[list[str], str]] = {
    "no source": (["outpaint"], "--mode outpaint needs a --source"),
    "a source for nothing": (["t2v", "--source", "CLIP"], "--mode t2v takes no --source"),
    "a source that is not here": (["outpaint", "--source", "gone.mp4"], "no file gone.mp4"),
    "no mask": (["inpaint", "--source", "CLIP"], "--mode inpaint needs a --mask"),
    "a mask for nothing": (["outpaint", "--source", "CLIP", "--mask", "MASK"], "takes no --mask"),
    "window of a suffix": (
        ["extend-suffix", "--source", "CLIP", "--conditioning-frames", "9"],
        "are 8, 16, 24",
    ),
    "window of a prefix": (
        ["extend-prefix", "--source", "CLIP", "--conditioning-frames", "8"],
        "are 9, 17, 25",
    ),
    "a window of nothing": (
        ["extend-suffix", "--source", "CLIP", "--conditioning-frames", "0"],
        "--conditioning-frames: Input should be greater than or equal to 1",
    ),
    "no lora": (["t2v", "--lora", "nothing.safetensors"], "no file nothing.safetensors"),
    "no scale": (["t2v", "--lora", "LORA:much"], "'much' is no scale"),
    "four loras": (["t2v", *4 * ["--lora", "LORA"]], "--lora: Tuple should have at most 3 items"),
    "an odd size": (["t2v", "--size", "91x64"], "--size: Input should be a multiple of 2"),
    "no size": (["t2v", "--size", "720p"], "--size: write it as 1280x720, not '720p'"),
    "no rate": (["t2v", "--fps", "0"], "--fps: at least 1 frame per second, not 0"),
    "an infinite rate": (["t2v", "--fps", "inf"], "--fps: at least 1 frame per second"),
    "no steps": (["t2v", "--steps", "0"], "--steps: Input should be greater than or equal to 1"),
    "a job's folder that is not new": (["t2v", "--job-dir", "HERE"], "holds other files"),
    "an output that is a folder": (["t2v", "--out", "HERE"], "--out: no file can be written at"),
    "an output below a file": (["t2v", "--out", "CLIP/a.mp4"], "can't be made: "),
}


@pytest.mark.parametrize("case", USAGE)
def test_by_hand_usage(
    case: str,
    by_hand: Callable[..., tuple[int, str]],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Said by the option's name, before anything takes time."""
    arguments, says = USAGE[case]
    with pytest.raises(SystemExit) as ended:
        by_hand(*(word.replace("HERE", str(tmp_path)) for word in arguments))
    assert ended.value.code == 2
    assert says in capfd.readouterr().err


def test_by_hand_ctrl_c(
    by_hand: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Between two steps: one word, no traceback and no file."""
    emit = EventLog.emit

    def interrupted(log: EventLog, kind: str, **fields: Any) -> None:
        emit(log, kind, **fields)
        if (fields.get("name"), fields.get("done")) == ("generate", 1):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EventLog, "emit", interrupted)
    code, said = by_hand("t2v", "--lora", "LORA", "--size", "64x64", "--steps", "3")
    assert (code, said.splitlines()[-1]) == (3, "stopped")
    assert "generate ..." in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.mp4").exists()


def test_by_hand_of_the_official_file(
    by_hand: Callable[..., tuple[int, str]], tiny: BaseModel, tmp_path: Path
) -> None:
    """With its text encoder beside it; a source that is held at 0 is not even opened."""
    official = tmp_path / "ltx-2.3-tiny.safetensors"
    to_single_file(tiny.folder, official)
    named = ("--model", str(official), "--text-encoder", str(tiny.folder))
    code, said = by_hand(
        "outpaint", "--source", "CLIP", "--strength", "0", "--size", "64x64", *named
    )
    assert code == 0, said
    assert "nothing of the source is kept" in said
    assert played(tmp_path / "out.mp4").frames.shape == (9, 64, 64, 3)
