"""The strip: regenerated cells are tinted, given ones are the clip's own pixels."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from preprocessing.manifest import Manifest, Sample
from preprocessing.rules import DatasetRule
from preprocessing.show import (
    NUM_PICTURES,
    Keep,
    Rectangle,
    UnusableKeep,
    Window,
    write_strip,
)
from tests.preprocessing.masks import box, write_mask_image
from tests.preprocessing.media.made import make_clip, patch
from tests.preprocessing.zips import zip_of

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT, FRAMES = 160, 96, 25
GRAY = 120


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Two gray samples; the second brings a mask that regenerates the two left columns."""
    (tmp_path / "samples").mkdir()
    np.save(tmp_path / "samples" / "gray.npy", np.full((FRAMES, HEIGHT, WIDTH, 3), GRAY, np.uint8))
    kept = np.ones((4, 3, 5), bool)
    kept[2, :, :2] = False
    np.save(tmp_path / "samples" / "mask.npy", kept)
    samples = tuple(
        Sample(
            id=f"000{number}",
            frames="samples/gray.npy",
            keep_mask="samples/mask.npy" if number == 2 else None,
            caption="",
            frame_rate=25,
            source=f"{number}.mp4",
        )
        for number in (1, 2)
    )
    Manifest(
        kind="video",
        width=WIDTH,
        height=HEIGHT,
        num_frames=FRAMES,
        with_audio=False,
        samples=samples,
    ).save(tmp_path)
    return tmp_path


def tinted(strip: Path) -> NDArray[np.bool_]:
    """[8, 3, 5]: which cells of which of the eight pictures are tinted."""
    page = np.asarray(Image.open(strip).convert("RGB")).astype(int)
    colored = np.abs(page - page.mean(axis=2, keepdims=True)).max(axis=2) > 25
    width, height, gap = 320, 192, 6
    cells = np.empty((NUM_PICTURES, 3, 5), bool)
    for place, y, x in np.ndindex(cells.shape):
        top = gap + place // 4 * (height + gap) + y * 64
        left = gap + place % 4 * (width + gap) + x * 64
        inside = colored[top + 34 : top + 60, left + 34 : left + 60]
        assert inside.all() or not inside.any(), "a cell has one colour"
        cells[place, y, x] = inside.all()
    return cells


FRAMES_SHOWN = [0, 3, 7, 10, 14, 17, 21, 24]


def expected(keep: Keep) -> NDArray[np.bool_]:
    cells = np.ones((NUM_PICTURES, 3, 5), bool)
    match keep:
        case Rectangle():
            cells[:, 1:3, 1:4] = False
        case Window(16, True):
            cells[[i for i, frame in enumerate(FRAMES_SHOWN) if frame >= 9]] = False
        case Window(9, False):
            cells[[i for i, frame in enumerate(FRAMES_SHOWN) if frame <= 8]] = False
    return cells


@pytest.mark.parametrize(
    "keep",
    [None, Rectangle(40, 33, 150, 96), Window(16, at_end=True), Window(9, at_end=False)],
    ids=["nothing is given", "rectangle", "suffix", "prefix"],
)
def test_what_is_given_is_clear(keep: Keep, prepared: Path) -> None:
    write_strip(prepared, prepared / "strip.png", keep)
    assert np.array_equal(tinted(prepared / "strip.png"), expected(keep))


def test_a_sample_with_a_mask(prepared: Path) -> None:
    write_strip(prepared, prepared / "strip.png", sample_id="0002")
    cells = np.zeros((NUM_PICTURES, 3, 5), bool)
    cells[[i for i, frame in enumerate(FRAMES_SHOWN) if 9 <= frame <= 16], :, :2] = True
    assert np.array_equal(tinted(prepared / "strip.png"), cells)


WRONG: dict[str, tuple[Keep, str | None, str]] = {
    "no such sample": (None, "0007", "no sample 0007; they are 0001 to 0002"),
    "outside": (Rectangle(0, 0, 161, 96), None, "160x96"),
    "inside out": (Rectangle(50, 0, 40, 96), None, "160x96"),
    "snaps to nothing": (Rectangle(33, 0, 63, 96), None, "gives nothing"),
    "all of the picture": (Rectangle(0, 0, 160, 96), None, "gives all"),
    "suffix of 9": (Window(9, at_end=True), None, "a multiple of 8"),
    "prefix of 8": (Window(8, at_end=False), None, "8k \\+ 1"),
    "all of it": (Window(25, at_end=False), None, "less than 25"),
    "none of it": (Window(0, at_end=True), None, "a multiple of 8"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_wishes(case: str, prepared: Path) -> None:
    keep, sample, words = WRONG[case]
    with pytest.raises(UnusableKeep if keep else ValueError, match=words):
        write_strip(prepared, prepared / "strip.png", keep, sample)
    assert not (prepared / "strip.png").exists()


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "preprocessing", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_in_one_go_and_later(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", [patch((GRAY, GRAY, GRAY))] * FRAMES)
    mask = write_mask_image(tmp_path / "mask.png", box(WIDTH, HEIGHT, (0, 0, 0.4, 1)))
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": clip, "a_mask.png": mask})
    spec, out = tmp_path / "spec.json", tmp_path / "out"
    rule = DatasetRule(
        num_frames=FRAMES,
        frame_rate=25,
        width=WIDTH,
        height=HEIGHT,
        image_extensions=(),
        masks=True,
    )
    spec.write_text(rule.model_dump_json())
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    done = command(archive, "--spec", spec, "--out", out, "--quiet", "--show", first)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    cells = np.zeros((NUM_PICTURES, 3, 5), bool)
    cells[:, :, :2] = True
    assert np.array_equal(tinted(first), cells)
    done = command("show", out, "--out", second, "--rectangle", "40,33,150,96")
    assert (done.returncode, done.stderr) == (0, "")
    assert np.array_equal(tinted(second), expected(Rectangle(40, 33, 150, 96)))
    for wrong in (
        ["--suffix", "9"],
        ["--rectangle", "1,2,3"],
        ["--suffix", "8", "--prefix", "9"],
        ["--sample", "9"],
    ):
        assert command("show", out, "--out", tmp_path / "3.png", *wrong).returncode == 1, wrong
    shutil.rmtree(out)
    assert command("show", out, "--out", second).returncode == 1
