"""From an archive to a prepared dataset, whole, on real clips and on made ones."""

import errno
import json
import shutil
from collections import namedtuple
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from preprocessing.errors import ArchiveError, DatasetError, DatasetRuleError
from preprocessing.events import EventLog
from preprocessing.manifest import Manifest
from preprocessing.prepare import prepare
from preprocessing.report import DatasetReport
from preprocessing.rules import AudioPolicy, DatasetRule
from tests.preprocessing import clips
from tests.preprocessing.media.made import numbered_clip, tone
from tests.preprocessing.zips import RawEntry, raw, zip_of

RULE = DatasetRule(num_frames=9, frame_rate=24, width=96, height=64)


def changed(**values: object) -> DatasetRule:
    return RULE.model_copy(update=values)


def run(archive: Path, out: Path, rule: DatasetRule = RULE, processes: int = 1) -> DatasetReport:
    out.mkdir(exist_ok=True)
    with EventLog(out / "events.jsonl") as events:
        return prepare(archive, rule, out, events, processes=processes)


def refused(
    archive: Path, out: Path, rule: DatasetRule = RULE
) -> tuple[DatasetError, DatasetReport]:
    """The error, and the report that must lie there all the same; nothing else may."""
    with pytest.raises(DatasetError) as caught:
        run(archive, out, rule)
    report = DatasetReport.load(out)
    assert {path.name for path in out.iterdir()} == {"report.json", "events.jsonl"}
    assert report.verdict == "refused"
    assert report.problem is not None
    assert report.problem.message == caught.value.message
    assert report.problem.type == caught.value.type
    assert report.problem.field == caught.value.field
    assert all(clip.dropped and not clip.became for clip in report.clips)
    assert str(out) not in caught.value.message
    return caught.value, report


def events_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def logged(out: Path) -> str:
    return "\n".join(str(event["message"]) for event in events_of(out) if event["kind"] == "log")


@pytest.fixture(scope="module")
def archive(
    bunny: Path, bikes: Path, carphone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Three clips in folders (two of one name), captions, and what people leave in archives."""
    return zip_of(
        tmp_path_factory.mktemp("archive") / "dataset.zip",
        {
            "day/clip.mp4": bunny,
            "day/CLIP.txt": b"a rabbit\nin a meadow",
            "night/clip.mp4": bikes,
            "night/clip.txt": "Fahrr\u00e4der".encode("latin-1"),
            "phone.mp4": carphone,
            "orphan.txt": b"nobody's",
            "README.md": b"hello",
            "__MACOSX/._phone.mp4": b"\0\5",
        },
    )


@pytest.fixture(scope="module")
def prepared(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    run(archive, out, changed(trigger_phrase="tronlog0"), processes=2)
    return out


def test_the_manifest_describes_what_is_on_disk(prepared: Path) -> None:
    manifest = Manifest.load(prepared)
    assert (manifest.kind, manifest.width, manifest.height) == ("video", 96, 64)
    assert (manifest.num_frames, manifest.with_audio) == (9, False)
    assert [sample.id for sample in manifest.samples] == ["0001", "0002", "0003"]
    assert [sample.source for sample in manifest.samples] == [
        "day/clip.mp4",
        "night/clip.mp4",
        "phone.mp4",
    ]
    assert [sample.caption for sample in manifest.samples] == [
        "tronlog0 a rabbit in a meadow",
        "tronlog0 Fahrr\u00e4der",
        "tronlog0",
    ]
    for sample in manifest.samples:
        frames = np.load(prepared / sample.frames, mmap_mode="r")
        assert frames.shape == (9, 64, 96, 3)
        assert frames.dtype == np.uint8
        assert frames.std() > 5, "a picture, not a flat field"
    assert {path.name for path in (prepared / "samples").iterdir()} == {
        Path(sample.frames).name for sample in manifest.samples
    }
    assert not (prepared / "work").exists()


def test_the_report_accounts_for_every_file(prepared: Path, archive: Path) -> None:
    report = DatasetReport.load(prepared)
    assert report.verdict == "ok"
    assert report.problem is None
    assert report.archive.num_entries == 8
    assert report.archive.size_bytes == archive.stat().st_size
    assert report.totals.model_dump() == {"clips": 3, "used": 3, "dropped": 0, "samples": 3}
    assert report.settings["trigger_phrase"] == "tronlog0"
    rabbit, bicycles, phone = report.clips
    assert rabbit.facts is not None
    assert (rabbit.facts.width, rabbit.facts.height, rabbit.facts.num_frames) == (1280, 720, 132)
    assert rabbit.facts.audio is not None
    assert rabbit.caption.model_dump() == {
        "file": "day/CLIP.txt",
        "text": "a rabbit in a meadow",
        "as_trained": "tronlog0 a rabbit in a meadow",
    }
    assert [made.sample for made in rabbit.became] == ["0001"]
    assert "Western European" in bicycles.warnings[0]
    assert phone.facts is not None
    assert phone.facts.frame_rate == Fraction(30000, 1001)
    assert phone.caption.file is None
    assert {ignored.name: ignored.reason.split()[0] for ignored in report.ignored} == {
        "orphan.txt": "a",
        "README.md": "not",
        "__MACOSX/._phone.mp4": "hidden",
    }
    assert report.audio is not None
    assert not report.audio.trained
    assert "2 of 3 clips have no sound (night/clip.mp4, phone.mp4)" in report.audio.reason
    assert any("3 files are used; 10 or more" in warning for warning in report.warnings)
    assert any("play at 25, 30000/1001 frames per second" in text for text in report.warnings)


def test_the_events_tell_the_story(prepared: Path) -> None:
    events = events_of(prepared)
    started = [event["name"] for event in events if event.get("state") == "start"]
    ended = [event["name"] for event in events if event.get("state") == "end"]
    assert started == ended == ["unpack", "probe", "fit"]
    for stage in ("probe", "fit"):
        progress = [e for e in events if e["kind"] == "progress" and e["name"] == stage]
        assert (progress[0]["done"], progress[-1]["done"]) == (0, 3)
        assert {event["total"] for event in progress} == {3}
    assert "3 videos, 2 with a caption, 3 other files ignored" in logged(prepared)


def test_the_same_again_in_one_process(prepared: Path, archive: Path, tmp_path: Path) -> None:
    run(archive, tmp_path, changed(trigger_phrase="tronlog0"))
    for file in [
        "manifest.json",
        "report.json",
        *(f"samples/000{n}.frames.npy" for n in (1, 2, 3)),
    ]:
        assert (tmp_path / file).read_bytes() == (prepared / file).read_bytes(), file


def test_a_folder_in_place_of_a_zip(prepared: Path, archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.unpack_archive(archive, folder)
    run(folder, tmp_path / "out", changed(trigger_phrase="tronlog0"))
    assert Manifest.load(tmp_path / "out") == Manifest.load(prepared)
    assert (folder / "day" / "clip.mp4").is_file(), "the user's files stay"


# Sound.


def test_a_folder_of_links(tmp_path: Path) -> None:
    """The confined decoder was not allowed to follow them, which ended in PermissionError."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    folder.mkdir()
    (folder / "a.mp4").symlink_to(clips.still_clip(elsewhere / "clip.mp4", 12))
    report = run(folder, tmp_path / "out")
    assert [clip.name for clip in report.clips] == ["a.mp4"]
    assert report.totals.samples == 1


def test_sound_is_trained_when_every_clip_has_it(bunny: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": bunny, "b.mp4": bunny})
    report = run(archive, tmp_path / "out")
    assert report.audio is not None
    assert report.audio.model_dump() == {"trained": True, "reason": "every clip has sound"}
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.with_audio
    for sample, clip in zip(manifest.samples, report.clips, strict=True):
        assert sample.audio is not None
        sound = np.load(tmp_path / "out" / sample.audio.path)
        assert sound.shape == (2, round(9 / sample.frame_rate * sample.audio.sample_rate))
        assert sound.dtype == np.float32
        assert 0.05 < np.abs(sound).max() <= 1
        assert clip.became[0].audio


def test_sound_that_is_required_and_missing(bunny: Path, carphone: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": bunny, "silent.mp4": carphone})
    error, report = refused(archive, tmp_path / "out", changed(audio=AudioPolicy.REQUIRED))
    assert "1 of 2 clips have no sound (silent.mp4)" in error.message
    assert (error.field, error.type) == ("with_audio", "value_error")
    assert error.ctx == {"silent_clips": ["silent.mp4"]}
    assert {clip.dropped.reason for clip in report.clips if clip.dropped} == {"dataset_refused"}


def test_sound_that_is_turned_off(bunny: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": bunny})
    report = run(archive, tmp_path / "out", changed(audio=AudioPolicy.OFF))
    assert report.audio is not None
    assert not report.audio.trained
    assert Manifest.load(tmp_path / "out").samples[0].audio is None


def test_a_silent_clip_that_is_dropped_has_no_say(
    bunny: Path, carphone: Path, tmp_path: Path
) -> None:
    """132 frames with sound are used, 120 silent ones are too short."""
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": bunny, "silent.mp4": carphone})
    report = run(archive, tmp_path / "out", changed(num_frames=121, audio=AudioPolicy.REQUIRED))
    assert report.audio is not None
    assert report.audio.trained
    used, dropped = report.clips
    assert used.became[0].num_frames == 121
    assert dropped.dropped is not None
    assert dropped.dropped.reason == "too_short"
    assert report.totals.model_dump() == {"clips": 2, "used": 1, "dropped": 1, "samples": 1}
    assert "too short: silent.mp4" in logged(tmp_path / "out")


ODD_RATES = {
    "9 frames in 19 ms, less than the trainer's spectrum": Fraction(480),
    "9 frames in 9 ms, no latent of sound": Fraction(960),
    "9 frames in an hour and a half": Fraction(1, 600),
}


def clip_with_sound(out: Path, rate: Fraction) -> Path:
    return numbered_clip(out, 12, rate=rate, sound=tone(1, 440))


@pytest.mark.parametrize("rate", ODD_RATES.values(), ids=ODD_RATES)
def test_sound_that_is_too_long_or_short_is_not_trained(
    rate: Fraction, bunny: Path, tmp_path: Path
) -> None:
    """It ended the training as the trainer's own fault, or filled the disk with silence."""
    odd = clip_with_sound(tmp_path / "odd.mkv", rate)
    archive = zip_of(tmp_path / "a.zip", {"a.mp4": bunny, "odd.mkv": odd})
    report = run(archive, tmp_path / "auto")
    assert report.audio is not None
    assert not report.audio.trained
    assert "samples of 1 of 2 clips" in report.audio.reason
    assert "(odd.mkv)" in report.audio.reason

    error, _ = refused(archive, tmp_path / "on", changed(audio=AudioPolicy.REQUIRED))
    assert (error.field, error.type) == ("with_audio", "value_error")
    assert error.ctx == {"clips": ["odd.mkv"]}
    assert "auto_scale_input" in error.message

    report = run(archive, tmp_path / "scaled", changed(audio=AudioPolicy.REQUIRED, auto_scale=True))
    assert report.audio is not None
    assert report.audio.trained


@pytest.mark.parametrize("rate", [Fraction(240), Fraction(1)], ids=str)
def test_sound_of_slow_motion_and_of_one_frame_a_second_is_trained(
    rate: Fraction, tmp_path: Path
) -> None:
    clip = clip_with_sound(tmp_path / "a.mkv", rate)
    report = run(zip_of(tmp_path / "a.zip", {"a.mkv": clip}), tmp_path / "out")
    assert report.audio is not None
    assert report.audio.trained


# Length.


@pytest.mark.parametrize(
    ("num_frames", "kept"), [(8, False), (9, True)], ids=["M32 one short", "M33 exactly enough"]
)
def test_length(num_frames: int, kept: bool, tmp_path: Path) -> None:
    clip = clips.still_clip(tmp_path / "clip.mp4", num_frames)
    long = clips.still_clip(tmp_path / "long.mp4", 30)
    report = run(zip_of(tmp_path / "a.zip", {"clip.mp4": clip, "long.mp4": long}), tmp_path / "out")
    assert bool(report.clips[0].became) == kept
    assert report.clips[1].became


def test_m34_all_too_short(tmp_path: Path) -> None:
    files = {
        f"{number}.mp4": clips.still_clip(tmp_path / f"{number}.mp4", number) for number in (1, 6)
    }
    error, report = refused(zip_of(tmp_path / "a.zip", files), tmp_path / "out")
    assert isinstance(error, DatasetRuleError)
    assert error.message == "All training videos are too short to be trainable"
    assert error.ctx == {
        "min_duration": 0.36,
        "provided_duration": 0.24,
        "min_frames": 9,
        "provided_frames": 6,
    }
    assert [clip.dropped.reason for clip in report.clips if clip.dropped] == ["too_short"] * 2
    assert any("the longest here has 6" in warning for warning in report.warnings)


def test_stills_are_too_short_with_auto_scale_too(tmp_path: Path) -> None:
    """The advice was to turn on what is on, and the frames that it takes were not asked for."""
    files = {"a.mp4": clips.still_clip(tmp_path / "a.mp4", 1)}
    error, report = refused(
        zip_of(tmp_path / "a.zip", files), tmp_path / "out", changed(auto_scale=True)
    )
    assert error.message == "All training videos are too short to be trainable"
    assert error.ctx == {
        "min_duration": 0.08,
        "provided_duration": 0.04,
        "min_frames": 2,
        "provided_frames": 1,
    }
    assert not any("auto_scale_input" in warning for warning in report.warnings)
    assert report.clips[0].dropped is not None
    assert "1 frames where 2 are needed" in report.clips[0].dropped.message


def test_short_clips_are_stretched_with_auto_scale(tmp_path: Path) -> None:
    clip = clips.still_clip(tmp_path / "clip.mp4", 6)
    archive = zip_of(tmp_path / "a.zip", {"clip.mp4": clip})
    report = run(archive, tmp_path / "out", changed(auto_scale=True))
    (made,) = report.clips[0].became
    assert (made.num_frames, made.frame_rate) == (9, 24)
    assert made.time_scale > 1


# Scenes.


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shots of 30, 20 and 35 frames."""
    return clips.clip_of_scenes(tmp_path_factory.mktemp("film") / "film.mp4", [1.2, 0.8, 1.4])


def test_scenes_share_the_caption(film: Path, tmp_path: Path) -> None:
    files = {
        "film.mp4": film,
        "film.txt": b"colours",
        "short.mp4": clips.still_clip(tmp_path / "short.mp4", 12),
    }
    archive = zip_of(tmp_path / "a.zip", files)
    report = run(archive, tmp_path / "out", changed(split_threshold_s=1.0, trigger_phrase="tok"))
    scenes, single = (clip.became for clip in report.clips)
    assert [scene.start_s for scene in scenes] == [0, 1.2, 2.0], "cuts are where they were made"
    assert len(single) == 1, "below the threshold nothing is cut"
    manifest = Manifest.load(tmp_path / "out")
    assert [s.caption for s in manifest.samples] == ["tok colours"] * 3 + ["tok"]
    assert [s.id for s in manifest.samples] == ["0001", "0002", "0003", "0004"]
    first = np.load(tmp_path / "out" / manifest.samples[0].frames)
    last = np.load(tmp_path / "out" / manifest.samples[2].frames)
    assert np.abs(first.astype(int) - last.astype(int)).mean() > 20, "two unlike scenes"


def test_a_scene_that_is_too_short_is_left_out(film: Path, tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"film.mp4": film})
    report = run(archive, tmp_path / "out", changed(num_frames=25, split_threshold_s=1.0))
    (clip,) = report.clips
    assert [(made.sample, made.start_s) for made in clip.became] == [("0001", 0), ("0002", 2.0)]
    assert "the scene from 1.20 s to 2.00 s was left out: too short" in clip.warnings


@pytest.mark.parametrize(
    "rule",
    [changed(split_threshold_s=1.0, split_scenes=False), changed(split_threshold_s=5.0)],
    ids=["turned off", "below the threshold"],
)
def test_no_scenes(rule: DatasetRule, film: Path, tmp_path: Path) -> None:
    report = run(zip_of(tmp_path / "a.zip", {"film.mp4": film}), tmp_path / "out", rule)
    assert len(report.clips[0].became) == 1


# Images.


def test_images_are_samples_of_one_frame(tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {
        "a.png": clips.write_image(tmp_path / "a.png"),
        "b.jpg": clips.write_image(tmp_path / "b.jpg"),
        "b.txt": b"squares",
    }
    report = run(zip_of(tmp_path / "a.zip", files), tmp_path / "out", changed(num_frames=89))
    manifest = Manifest.load(tmp_path / "out")
    assert (manifest.kind, manifest.num_frames, manifest.with_audio) == ("image", 1, False)
    assert [(s.caption, s.frame_rate) for s in manifest.samples] == [("", 24), ("squares", 24)]
    for sample in manifest.samples:
        assert np.load(tmp_path / "out" / sample.frames).shape == (1, 64, 96, 3)
    assert all(clip.kind == "image" and len(clip.became) == 1 for clip in report.clips)


def test_images_have_no_sound(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.png": clips.write_image(tmp_path / "a.png")})
    error, _ = refused(archive, tmp_path / "out", changed(audio=AudioPolicy.REQUIRED))
    assert error.field == "with_audio"


# Refusals.


@pytest.mark.parametrize(
    ("size", "kept_bytes", "words"),
    [((15, 40), None, "15x40 pixels"), ((80, 120), 60, "Save it again as PNG or JPEG")],
    ids=["small", "cut off"],
)
def test_a_bad_image_is_not_refused_as_a_video(
    size: tuple[int, int], kept_bytes: int | None, words: str, tmp_path: Path
) -> None:
    data = clips.write_image(tmp_path / "a.png", *size).read_bytes()[:kept_bytes]
    error, _ = refused(zip_of(tmp_path / "a.zip", {"a.png": data}), tmp_path / "out")
    assert error.type == "unsupported_image_format"
    assert error.ctx["supported_formats"] == [".png", ".jpg", ".jpeg"]
    assert words in error.message
    assert "MP4" not in error.message.upper()


@pytest.mark.parametrize(
    "files",
    [{}, {"day/": b""}, {"inner.zip": b"PK\5\6" + bytes(18)}, {"clip.webm": b"x", "a.txt": b"x"}],
    ids=["Z23 empty", "Z24 folders only", "Z25 zip in zip", "other kinds"],
)
def test_no_usable_media(files: dict[str, bytes | Path], tmp_path: Path) -> None:
    error, report = refused(zip_of(tmp_path / "a.zip", files), tmp_path / "out")
    assert error.type == "archive_file_count_below_minimum"
    assert (error.ctx["min_count"], error.ctx["provided_count"]) == (1, 0)
    assert report.totals.clips == 0


def test_m51_mixed(carphone: Path, tmp_path: Path) -> None:
    files = {"a.mp4": carphone, "b.png": clips.write_image(tmp_path / "b.png")}
    error, report = refused(zip_of(tmp_path / "a.zip", files), tmp_path / "out")
    assert "mixes videos and images (a.mp4, b.png)" in error.message
    assert report.archive.num_entries == 2


def test_all_bad_clips_are_named_at_once(carphone: Path, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {
        "text.mp4": b"this is not a film",
        "zeros.mov": bytes(5000),
        "large.mp4": carphone,
        "large.txt": b"a" * 20_000,
        "fine.mp4": carphone,
    }
    error, report = refused(zip_of(tmp_path / "a.zip", files), tmp_path / "out")
    assert error.message.startswith("3 of 4 files can't be used.")
    for name in ("text.mp4", "zeros.mov", "large.txt"):
        assert name in error.message
    assert error.ctx["files"] == ["large.mp4", "text.mp4", "zeros.mov"]
    reasons = {clip.name: clip.dropped.reason for clip in report.clips if clip.dropped}
    assert reasons["fine.mp4"] == "dataset_refused"
    assert reasons["large.mp4"] == "bad_caption"
    assert not {"dataset_refused", "bad_caption"} & {reasons["text.mp4"], reasons["zeros.mov"]}
    assert report.totals.used == 0


def test_a_refusal_names_a_hundred_files_at_most(tmp_path: Path) -> None:
    """The report names all; the reply and the webhook would grow to megabytes."""
    files: dict[str, bytes | Path] = {f"{number}.mp4": b"no film" for number in range(150)}
    _, report = refused(zip_of(tmp_path / "a.zip", files), tmp_path / "out")
    assert report.problem is not None
    named = report.problem.ctx["files"]
    assert isinstance(named, list)
    assert len(named) == 100
    assert len(report.clips) == 150


def test_one_bad_clip_is_refused_in_its_own_words(carphone: Path, tmp_path: Path) -> None:
    files = {"a\x1b[2J.mp4": b"no film", "fine.mp4": carphone}
    error, _ = refused(zip_of(tmp_path / "a.zip", files), tmp_path / "out")
    assert "a\\u001b[2J.mp4" in error.message
    assert error.type == "unsupported_video_format"
    assert "supported_formats" in error.ctx


def test_a_refused_archive_is_reported_too(tmp_path: Path) -> None:
    archive = tmp_path / "login.zip"
    archive.write_bytes(b"<html>Please log in</html>")
    error, report = refused(archive, tmp_path / "out")
    assert isinstance(error, ArchiveError)
    assert "an HTML page" in error.message
    assert report.archive.size_bytes == 26
    assert len(report.archive.sha256) == 64
    assert report.clips == ()


def test_a_clip_damaged_in_the_zip_is_named(carphone: Path, tmp_path: Path) -> None:
    data = carphone.read_bytes()
    archive = tmp_path / "a.zip"
    archive.write_bytes(raw(RawEntry(b"a.mp4", data), RawEntry(b"b.mp4", data, crc=1)))
    error, report = refused(archive, tmp_path / "out")
    assert error.type == "invalid_archive"
    reasons = [clip.dropped.reason for clip in report.clips if clip.dropped]
    assert reasons == ["dataset_refused", "damaged_in_archive"]


def test_a_refusal_leaves_nothing_of_an_earlier_run(carphone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(zip_of(tmp_path / "good.zip", {"a.mp4": carphone}), out)
    assert (out / "manifest.json").exists()
    refused(zip_of(tmp_path / "bad.zip", {"a.mp4": b"no film"}), out)


def test_a_full_disk_is_our_fault(
    carphone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(OSError, match="not enough disk") as caught:
        run(zip_of(tmp_path / "a.zip", {"a.mp4": carphone}), tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"events.jsonl"}
