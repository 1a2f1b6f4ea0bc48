"""Masks through a whole preparation: manifest, files, report, refusals by name."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.debug_archive import write_debug_archive
from preprocessing.errors import DatasetError
from preprocessing.events import EventLog
from preprocessing.manifest import Manifest
from preprocessing.prepare import prepare
from preprocessing.report import DatasetReport
from preprocessing.rules import AudioPolicy, DatasetRule
from tests.preprocessing.masks import (
    box,
    flashes,
    write_mask_image,
    write_mask_video,
)
from tests.preprocessing.media.made import make_clip, numbered, numbered_clip
from tests.preprocessing.zips import zip_of

RULE = DatasetRule(
    num_frames=17,
    frame_rate=24,
    width=160,
    height=96,
    video_extensions=(".mp4", ".mov", ".avi", ".mkv", ".webm"),
    image_extensions=(),
    split_scenes=False,
    audio=AudioPolicy.OFF,
    masks=True,
    unique_names=True,
)


def run(archive: Path, out: Path, rule: DatasetRule = RULE) -> DatasetReport:
    out.mkdir(exist_ok=True)
    with EventLog(out / "events.jsonl") as events:
        return prepare(archive, rule, out, events, processes=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and masks to make archives of."""
    folder = tmp_path_factory.mktemp("made")
    numbered_clip(folder / "clip.mp4", 25)
    numbered_clip(folder / "short.mp4", 5)
    webm = {"codec": "libvpx-vp9", "options": {"crf": "20", "deadline": "realtime"}}
    numbered_clip(folder / "clip.webm", 25, **webm)
    left = box(160, 96, (0, 0, 0.4, 1))
    write_mask_image(folder / "left.png", left)
    write_mask_image(folder / "black.png", left * 0)
    write_mask_image(folder / "white.png", left * 0 + 255)
    write_mask_video(folder / "flash.mp4", flashes(25, 12))
    write_mask_video(folder / "flash.webm", flashes(10, 9), **webm)
    (folder / "text.png").write_bytes(b"no picture")
    return folder


def test_masks_are_prepared_beside_their_clips(folder: Path, tmp_path: Path) -> None:
    archive = zip_of(
        tmp_path / "a.zip",
        {
            "a.mp4": folder / "clip.mp4",
            "a_mask.png": folder / "left.png",
            "b.mp4": folder / "clip.mp4",
            "b_mask.mp4": folder / "flash.mp4",
            "b.txt": b"a flash",
            "c.webm": folder / "clip.webm",
            "masks/c_mask.webm": folder / "flash.webm",
            "d.mp4": folder / "short.mp4",
            "d_mask.png": folder / "black.png",
        },
    )
    report = run(archive, tmp_path / "out")
    manifest = Manifest.load(tmp_path / "out")
    assert [sample.source for sample in manifest.samples] == ["a.mp4", "b.mp4", "c.webm"]
    edited = []
    for sample in manifest.samples:
        assert sample.keep_mask == f"samples/{sample.id}.keep_mask.npy"
        kept = np.load(tmp_path / "out" / sample.keep_mask)
        assert (kept.shape, kept.dtype) == ((3, 3, 5), np.bool_)
        assert kept[:, :, 2:].all()
        edited.append(np.flatnonzero(~kept[:, 0, 0]).tolist())
    assert edited == [[0, 1, 2], [2], [2]], "always, frame 12, from frame 9 on"
    became = [made.mask for clip in report.clips for made in clip.became]
    assert became == [
        "a_mask.png, image of 160x96: 40.0 % of the cells regenerated",
        "b_mask.mp4, video of 160x96, 25 frames at 25: 13.3 % of the cells regenerated",
        "masks/c_mask.webm, video of 160x96, 10 frames at 25, last frame held "
        "from 0.40 s: 13.3 % of the cells regenerated",
    ]
    assert report.clips[3].dropped is not None
    assert report.clips[3].dropped.reason == "too_short", "its useless mask has no say"
    assert not report.ignored
    events = [
        json.loads(line) for line in (tmp_path / "out/events.jsonl").read_text().split("\n") if line
    ]
    stages = [event["name"] for event in events if event.get("state") == "end"]
    assert stages == ["unpack", "probe", "fit", "masks"]
    assert len(list((tmp_path / "out" / "samples").iterdir())) == 6
    write_debug_archive(tmp_path / "out", tmp_path / "debug.zip")
    with zipfile.ZipFile(tmp_path / "debug.zip") as debug:
        strips = [name for name in debug.namelist() if name.endswith(".png")]
        assert strips == ["0001_a_mask.png", "0002_b_mask.png", "0003_c_mask.png"]
        with debug.open(strips[0]) as file, Image.open(file) as strip:
            assert strip.width > 4 * 320


def test_without_masks_there_are_none(folder: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": folder / "clip.mp4"})
    report = run(archive, tmp_path / "out", RULE.model_copy(update={"masks": False}))
    assert report.clips[0].became[0].mask is None
    assert Manifest.load(tmp_path / "out").samples[0].keep_mask is None


def test_m52_all_bad_masks_are_named_at_once(folder: Path, tmp_path: Path) -> None:
    ticks = [0, 1, 2, 5, 6, 9, 10, 11, 15, 16, 17, 21, 22, 25]
    jerky = make_clip(
        tmp_path / "jerky.mp4", map(numbered, range(14)), ticks=[t * 512 for t in ticks]
    )
    files: dict[str, bytes | Path] = {
        "black.mp4": folder / "clip.mp4",
        "black_mask.png": folder / "black.png",
        "fine.mp4": folder / "clip.mp4",
        "fine_mask.png": folder / "left.png",
        "jerky.mp4": jerky,
        "jerky_mask.mp4": folder / "flash.mp4",
        "text.mp4": folder / "clip.mp4",
        "text_mask.png": folder / "text.png",
        "white.mp4": folder / "clip.mp4",
        "white_mask.png": folder / "white.png",
    }
    short = RULE.model_copy(update={"num_frames": 9})
    with pytest.raises(DatasetError) as caught:
        run(zip_of(tmp_path / "a.zip", files), tmp_path / "out", short)
    assert caught.value.message.startswith("4 of 5 files can't be used.")
    assert caught.value.ctx["files"] == ["black.mp4", "jerky.mp4", "text.mp4", "white.mp4"]
    report = DatasetReport.load(tmp_path / "out")
    assert {clip.name: clip.dropped.reason for clip in report.clips if clip.dropped} == {
        "black.mp4": "mask_keeps_all",
        "fine.mp4": "dataset_refused",
        "jerky.mp4": "mask_out_of_step",
        "text.mp4": "not_a_mask",
        "white.mp4": "mask_keeps_nothing",
    }
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_missing_mask_costs_no_decoding(folder: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": folder / "clip.mp4"})
    with pytest.raises(DatasetError, match=r"These clips have no mask: a\.mp4\."):
        run(archive, tmp_path / "out")
    report = DatasetReport.load(tmp_path / "out")
    assert report.problem is not None
    assert report.problem.ctx == {"clips_without_mask": ["a.mp4"]}
