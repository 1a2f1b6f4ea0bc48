"""The archive people download to see what was trained on."""

import json
import zipfile
from pathlib import Path

import av
import pytest

from preprocessing.debug_archive import write_debug_archive
from preprocessing.events import EventLog
from preprocessing.prepare import prepare
from preprocessing.rules import DatasetRule
from tests.preprocessing import clips
from tests.preprocessing.zips import zip_of

RULE = DatasetRule(num_frames=9, frame_rate=24, width=96, height=64, trigger_phrase="tok")


def debug_archive_of(files: dict[str, bytes | Path], folder: Path) -> zipfile.ZipFile:
    out = folder / "prepared"
    out.mkdir()
    with EventLog(out / "events.jsonl") as events:
        prepare(zip_of(folder / "a.zip", files), RULE, out, events, processes=1)
    write_debug_archive(out, folder / "debug.zip")
    return zipfile.ZipFile(folder / "debug.zip")


def test_videos_with_sound(bunny: Path, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {
        "day/$(rm -rf) \u202eclip.mp4": bunny,
        "day/$(rm -rf) \u202eclip.txt": "H\u00e4schen".encode(),
        "b.mp4": bunny,
    }
    with debug_archive_of(files, tmp_path) as archive:
        assert archive.namelist() == [
            "report.json",
            "0001_b.mp4",
            "0001_b.txt",
            "0002_day_rm_-rf_u202eclip.mp4",
            "0002_day_rm_-rf_u202eclip.txt",
        ]
        assert archive.testzip() is None
        assert archive.read("0002_day_rm_-rf_u202eclip.txt").decode() == "tok H\u00e4schen"
        assert archive.read("0001_b.txt") == b"tok"
        report = archive.read("report.json").decode()
        assert json.loads(report)["verdict"] == "ok"
        assert str(tmp_path) not in report
        archive.extract("0001_b.mp4", tmp_path)
    with av.open(str(tmp_path / "0001_b.mp4")) as played:
        (video,), (sound,) = played.streams.video, played.streams.audio
        assert video.codec_context.name == "h264"
        assert sound.codec_context.channels == 2
        assert len([frame for frame in played.decode(video)]) == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0001_b.mp4",
        "a.zip",
        "debug.zip",
        "prepared",
    ], "nothing is left beside the archive"


def test_images(tmp_path: Path) -> None:
    image = clips.write_image(tmp_path / "a.png")
    with debug_archive_of({"a.png": image}, tmp_path) as archive:
        assert archive.namelist() == ["report.json", "0001_a.png", "0001_a.txt"]
        assert archive.read("0001_a.png").startswith(b"\x89PNG")


def test_without_a_prepared_dataset(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_debug_archive(tmp_path, tmp_path / "debug.zip")
    assert list(tmp_path.iterdir()) == []
