"""M3, M14, M34, M35, M49, M51, M52: what only a whole dataset shows, through the preparation."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessing.errors import MediaError
from preprocessing.events import EventLog
from preprocessing.rules import AudioPolicy, DatasetRule, ValidationRule
from preprocessing.validation import ValidationSource, prepare_validation
from tests.hostile.costs import MEBIBYTE, Meter
from tests.hostile.media_files import Make, variable_rate
from tests.hostile.preparing import Job, Prepared, prepare_all
from tests.preprocessing.media.made import make_clip, numbered_clip, numbers_in, patch, rule, tone
from tests.preprocessing.media.test_refusals import HLS
from tests.preprocessing.zips import zip_of

MAX_PEAK_BYTES = 2048 * MEBIBYTE


def job(folder: Path, id: str, rule: DatasetRule, **files: Make) -> Job:
    """A dataset of files that are made for it; "__" in a keyword stands for the dot."""
    folder = folder / id
    folder.mkdir(parents=True)
    contents: dict[str, bytes | Path] = {}
    for keyword, make in files.items():
        path = folder / keyword.replace("__", ".")
        make(path)
        contents[path.name] = path
    return Job(id, zip_of(folder / "dataset.zip", contents), folder / "out", rule)


def plain(count: int = 12) -> Make:
    return lambda path: numbered_clip(path, count)


def loud(path: Path) -> None:
    numbered_clip(path, 20, sound=tone(0.8, 440))


def still_mask(width: int, height: int, white: float = 0.5, mode: str = "RGB") -> Make:
    """White on the left side, as wide as ``white`` says."""

    def make(path: Path) -> None:
        image = Image.new(mode, (width, height))
        image.paste("white", (0, 0, round(width * white), height))
        image.save(path)

    return make


def moving_mask(count: int) -> Make:
    picture = patch((0, 0, 0))
    picture[:, :80] = 255
    return lambda path: make_clip(path, [picture] * count)


def spoiled(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n damaged")


MASKS = rule(masks=True, image_extensions=(), unique_names=True)
SILENT = rule(audio=AudioPolicy.AUTO)

DATASETS: dict[str, tuple[DatasetRule, dict[str, Make], tuple[str, ...]]] = {
    # id: (rule, files, words of the refusal; none where it must work)
    "M34-all-too-short": (
        rule(),
        {"a__mp4": plain(3), "b__mp4": plain(8)},
        ("All training videos are too short to be trainable",),
    ),
    "M35-variable-rate-with-a-moving-mask": (
        MASKS,
        {"a__mkv": variable_rate, "a_mask__mkv": moving_mask(16)},
        ("a.mkv", "variable"),
    ),
    "M49-a-silent-clip-and-with_audio": (
        rule(audio=AudioPolicy.REQUIRED),
        {"a__mp4": loud, "b__mp4": plain()},
        ("with_audio is true", "b.mp4"),
    ),
    "M49-a-silent-clip-and-null": (SILENT, {"a__mp4": loud, "b__mp4": plain()}, ()),
    "M51-images-and-videos": (
        rule(),
        {"a__mp4": plain(), "b__png": still_mask(160, 96)},
        ("mixes videos and images",),
    ),
    "M51-images-where-none-are-taken": (
        rule(image_extensions=()),
        {"a__mp4": plain(), "b__png": still_mask(160, 96)},
        ("b.png is an image",),
    ),
    "M52-missing": (MASKS, {"a__mp4": plain()}, ("a.mp4",)),
    "M52-bad-ones": (
        MASKS,
        {
            "black__mp4": plain(),
            "black_mask__png": still_mask(160, 96, white=0),
            "white__mp4": plain(),
            "white_mask__png": still_mask(160, 96, white=1),
            "spoiled__mp4": plain(),
            "spoiled_mask__png": spoiled,
        },
        ("black", "white", "spoiled"),
    ),
    "M52-odd-ones": (
        MASKS,
        {
            "size__mp4": plain(),
            "size_mask__png": still_mask(320, 192),
            "alpha__mp4": plain(),
            "alpha_mask__png": still_mask(160, 96, mode="RGBA"),
            "short__mp4": plain(),
            "short_mask__mp4": moving_mask(3),
            "long__mp4": plain(),
            "long_mask__mp4": moving_mask(40),
        },
        (),
    ),
    "M14-names-that-are-protocols": (
        rule(),
        {"a:b__mp4": plain(), "-i__mp4": plain(), "concat:x|y__mp4": plain(), "%03d__mp4": plain()},
        (),
    ),
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    folder = tmp_path_factory.mktemp("datasets")
    jobs = [job(folder, id, asked, **files) for id, (asked, files, _) in DATASETS.items()]
    return prepare_all(jobs, folder / "notes")


@pytest.mark.parametrize("case_id", DATASETS)
def test_dataset(datasets: dict[str, Prepared], meter: Meter, case_id: str) -> None:
    one = datasets[case_id]
    meter.measured(one.outcome.seconds, one.outcome.peak_bytes)
    assert one.outcome.peak_bytes < MAX_PEAK_BYTES
    words = DATASETS[case_id][2]
    if words:
        message = one.refused()
        assert all(word in message for word in words), message
        return
    report = one.accepted()
    assert report.totals.used == report.totals.clips
    for sample in (one.job.out / "samples").glob("*.frames.npy"):
        assert numbers_in(sample) == list(range(9))


def test_M49_null_with_a_silent_clip_trains_without_sound(datasets: dict[str, Prepared]) -> None:
    audio = datasets["M49-a-silent-clip-and-null"].report.audio
    assert audio is not None
    assert not audio.trained
    assert "b.mp4" in audio.reason


def test_M52_short_masks_are_held_and_long_ones_cut(datasets: dict[str, Prepared]) -> None:
    clips = {clip.name: clip for clip in datasets["M52-odd-ones"].report.clips}
    assert len(clips) == 4
    for clip in clips.values():
        (sample,) = clip.became
        assert sample.mask
    out = datasets["M52-odd-ones"].job.out / "samples"
    masks = [np.load(path) for path in sorted(out.glob("*.keep_mask.npy"))]
    assert all((mask == masks[0]).all() for mask in masks), "all four say the same"


def test_M3_playlist_as_validation_video(tmp_path: Path) -> None:
    """What a preview starts from goes the same way."""
    secret = numbered_clip(tmp_path / "secret.mp4", 20)
    playlist = tmp_path / "0-video"
    playlist.write_text(HLS.format(target=secret))
    asked = ValidationRule(num_frames=9, frame_rate=24, width=160, height=96)
    out = tmp_path / "out"
    out.mkdir()
    with EventLog(out / "events.jsonl") as events, pytest.raises(MediaError) as caught:
        prepare_validation([ValidationSource(video=playlist)], asked, out, events)
    assert caught.value.reason == "not_a_video"
    assert caught.value.field == "validation.0.video_url"
    assert {path.name for path in out.iterdir()} == {"events.jsonl", "problem.json"}
