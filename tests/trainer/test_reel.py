"""The reel: complete, in order, with sound, and every caption in the picture."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ImageFont

from benchmarks.x264_repeats import frames_of
from trainer.mp4 import (
    SAMPLE_RATE,
    Chapter,
    Compression,
    Mp4Writer,
    num_audio_samples,
    to_rgb,
    write_clip,
)
from trainer.overlay import (
    ACCENT,
    BACKGROUND,
    MAX_PROMPT_LINES,
    SYSTEM_FONTS,
    Caption,
    best_font,
    draw_strips,
    printable,
    spell,
    wrap,
)
from trainer.reel import MIN_PICTURE_WIDTH, MIN_SEGMENT_S, Preview, make_reel

RATE = Fraction(24)
NUM_FRAMES = 9
PROMPTS = ("tronlog0 on a desk", "海辺を走る赤い車 — naïve café 🚗")
STEPS = (25, 50, 100)
WIDTH, HEIGHT = 96, 64


def grey(index: int, step: int) -> int:
    """The brightness that stands for one preview."""
    return 40 + 20 * STEPS.index(step) + 100 * index


def tone(hz: float, num_frames: int) -> NDArray[np.float32]:
    time = np.arange(num_audio_samples(num_frames, RATE)) / SAMPLE_RATE
    return np.stack([0.4 * np.sin(2 * np.pi * hz * time)] * 2).astype(np.float32)


def make(folder: Path, *, with_audio: bool) -> list[Preview]:
    """One file per step and prompt, in the order they would appear: by step."""
    previews = []
    for step in STEPS:
        for index, prompt in enumerate(PROMPTS):
            path = folder / f"step-{step:06d}_prompt-{index}.mp4"
            frames = np.full((NUM_FRAMES, HEIGHT, WIDTH, 3), grey(index, step), np.uint8)
            sound = tone(500 * (index + 1), NUM_FRAMES) if with_audio else None
            write_clip(path, frames, RATE, sound, crf=17)
            previews.append(Preview(step, index, prompt, path))
    return previews


def pictures(path: Path) -> Iterator[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield to_rgb(frame)


def sound_of(path: Path) -> NDArray[np.float32]:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)


def captions() -> list[Caption]:
    return [
        Caption(prompt, index + 1, len(PROMPTS), step, STEPS[-1])
        for index, prompt in enumerate(PROMPTS)
        for step in STEPS
    ]


@pytest.mark.parametrize("with_audio", [True, False], ids=["with-audio", "silent"])
def test_every_preview_is_in_it_with_its_caption(tmp_path: Path, with_audio: bool) -> None:
    path = tmp_path / "reel.mp4"
    make_reel(make(tmp_path, with_audio=with_audio), path, num_steps=STEPS[-1])

    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert video.codec_context.pix_fmt == "yuv420p"
        assert video.average_rate == RATE
        assert video.width >= MIN_PICTURE_WIDTH
        assert len(container.streams.audio) == with_audio
        chapters = container.chapters()
    frames = list(pictures(path))
    zoom = frames[0].shape[1] // WIDTH
    repeats = -(-int(MIN_SEGMENT_S * RATE) // NUM_FRAMES)
    assert len(frames) == len(PROMPTS) * len(STEPS) * repeats * NUM_FRAMES

    strips = draw_strips(captions(), WIDTH * zoom)
    order = [(index, step) for index in range(len(PROMPTS)) for step in STEPS]
    titles = [chapter["metadata"]["title"] for chapter in chapters]
    assert titles == [f"Step {step}: {PROMPTS[index]}" for index, step in order]
    for number, ((index, step), chapter) in enumerate(zip(order, chapters, strict=True)):
        first = number * repeats * NUM_FRAMES
        start_s = chapter["start"] * (chapter["time_base"] or Fraction(1))
        assert abs(start_s - first / RATE) < Fraction(1, 500)
        for frame in (frames[first], frames[first + repeats * NUM_FRAMES - 1]):
            picture, strip = frame[: HEIGHT * zoom], frame[HEIGHT * zoom :]
            assert abs(picture.mean() - grey(index, step)) < 3
            mismatch = [np.abs(strip.astype(int) - other).mean() for other in strips]
            assert int(np.argmin(mismatch)) == number
            assert mismatch[number] < 4
    if with_audio:
        sound = sound_of(path)
        assert abs(sound.shape[1] - num_audio_samples(len(frames), RATE)) <= 2048
        half = sound.shape[1] // 2
        for index, part in enumerate((sound[0, :half], sound[0, half:])):
            spectrum = np.abs(np.fft.rfft(part))
            peak_hz = np.argmax(spectrum) * SAMPLE_RATE / len(part)
            assert peak_hz == pytest.approx(500 * (index + 1), abs=5)


def test_equal_frames_make_equal_files(tmp_path: Path) -> None:
    """x264's AVX-512 code does not (`benchmarks/x264_repeats.py`)."""
    path = tmp_path / "clip.mp4"
    files = set()
    for _ in range(100):
        write_clip(path, frames_of("waves"), RATE, crf=17)
        files.add(path.read_bytes())
    assert len(files) == 1


def test_a_long_preview_plays_once_and_a_wide_one_is_not_enlarged(tmp_path: Path) -> None:
    frames = np.zeros((49, 64, 512, 3), np.uint8)
    write_clip(tmp_path / "a.mp4", frames, RATE, crf=17)
    make_reel([Preview(5, 0, "", tmp_path / "a.mp4")], tmp_path / "reel.mp4", num_steps=5)
    found = list(pictures(tmp_path / "reel.mp4"))
    assert len(found) == 49
    assert found[0].shape[1] == 512


def test_a_silent_preview_between_others_is_silence(tmp_path: Path) -> None:
    frames = np.zeros((48, 64, 96, 3), np.uint8)
    previews = []
    for step, sound in ((1, tone(500, 48)), (2, None), (3, tone(500, 48))):
        path = tmp_path / f"{step}.mp4"
        write_clip(path, frames, RATE, sound, crf=17)
        previews.append(Preview(step, 0, "p", path))
    make_reel(previews, tmp_path / "reel.mp4", num_steps=3)
    parts = np.array_split(sound_of(tmp_path / "reel.mp4")[0], 3)
    loudness = [float(np.sqrt(np.mean(part[4800:-4800] ** 2))) for part in parts]
    assert loudness[1] < 0.001
    assert min(loudness[0], loudness[2]) > 0.2


def test_previews_of_other_sizes_lengths_and_rates_fit_in(tmp_path: Path) -> None:
    """Each in the middle of black, as long as it plays: 9 frames at 24 a second, 17 at 10."""
    shapes = {"wide": (9, 64, 96, RATE, 200), "tall": (17, 96, 64, Fraction(10), 120)}
    previews = []
    for index, (name, (length, height, width, rate, level)) in enumerate(shapes.items()):
        path = tmp_path / f"{name}.mp4"
        write_clip(path, np.full((length, height, width, 3), level, np.uint8), rate, crf=17)
        previews.append(Preview(1, index, name, path))
    make_reel(previews, tmp_path / "reel.mp4", num_steps=1)

    with av.open(str(tmp_path / "reel.mp4")) as container:
        assert container.streams.video[0].average_rate == RATE
    found = list(pictures(tmp_path / "reel.mp4"))
    num_wide, num_tall = 6 * 9, 2 * 41  # 17 / 10 s are 40.8 frames; both play for 2 s or more
    assert len(found) == num_wide + num_tall
    zoom = found[0].shape[1] // 96
    for number, name in ((0, "wide"), (num_wide - 1, "wide"), (num_wide, "tall"), (-1, "tall")):
        _, height, width, _, level = shapes[name]
        picture = found[number][: 96 * zoom : zoom, ::zoom].mean(axis=-1)
        top, left = (96 - height) // 2, (96 - width) // 2
        expected = np.zeros((96, 96))
        expected[top : top + height, left : left + width] = level
        # Away from the edges, which 4:2:0 and the compression soften.
        assert np.abs(picture - expected)[4:-4:8, 4:-4:8].max() < 4, name


def test_a_slower_preview_is_shown_frame_by_frame(tmp_path: Path) -> None:
    """12 a second beside 24: each of its frames twice, in order."""
    levels = [30, 90, 150, 210] * 6
    slow = np.stack([np.full((64, 96, 3), level, np.uint8) for level in levels])
    write_clip(tmp_path / "slow.mp4", slow, Fraction(12), crf=17)
    write_clip(tmp_path / "fast.mp4", np.zeros((48, 64, 96, 3), np.uint8), RATE, crf=17)
    previews = [Preview(1, i, n, tmp_path / f"{n}.mp4") for i, n in enumerate(("slow", "fast"))]
    make_reel(previews, tmp_path / "reel.mp4", num_steps=1)
    shown = [picture[:200].mean() for picture in pictures(tmp_path / "reel.mp4")]
    assert len(shown) == 48 + 48
    assert np.abs(np.array(shown[:48]) - np.repeat(levels, 2)).max() < 4


def test_what_makes_no_reel(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_reel([], tmp_path / "reel.mp4", num_steps=1)
    lost = [Preview(1, 0, "p", tmp_path / "none.mp4")]
    with pytest.raises(FileNotFoundError):
        make_reel(lost, tmp_path / "reel.mp4", num_steps=2)
    assert not (tmp_path / "reel.mp4").exists()


def test_an_interrupted_file_does_not_appear(tmp_path: Path) -> None:
    def write_half() -> None:
        with Mp4Writer(
            tmp_path / "clip.mp4",
            width=64,
            height=64,
            frame_rate=RATE,
            with_audio=False,
            compression=Compression(17),
            chapters=[Chapter(0, 2, "one")],
        ) as writer:
            writer.write_frame(np.zeros((64, 64, 3), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "rgb",
    [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 50, 30), (30, 200, 60), (20, 40, 220)],
    ids=["white", "black", "grey", "red", "green", "blue"],
)
def test_colours_survive(tmp_path: Path, rgb: tuple[int, int, int]) -> None:
    frames = np.full((3, 64, 64, 3), rgb, np.uint8)
    write_clip(tmp_path / "clip.mp4", frames, RATE, crf=17)
    for frame in pictures(tmp_path / "clip.mp4"):
        assert np.abs(frame.astype(int) - frames[0]).max() <= 3


HOSTILE = [
    pytest.param("", "(empty prompt)", id="empty"),
    pytest.param("a\n\tb\r\n  c", "a b c", id="white-space"),
    pytest.param("a\x00b\x1bc\u202e\ud800d", "abcd", id="control-bidi-surrogate"),
]


@pytest.mark.parametrize(("prompt", "shown"), HOSTILE)
def test_prompts_are_made_printable(prompt: str, shown: str) -> None:
    assert (printable(prompt) or "(empty prompt)") == shown


@pytest.mark.parametrize(
    "fonts", [pytest.param(SYSTEM_FONTS, id="system"), pytest.param((), id="bundled-only")]
)
@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "x" * 5000,
        "word " * 1000,
        "naïve größer café — “quotes” … 2×",
        "海辺の道を走る赤い車" * 20,
        "солнце и море",
        "مرحبا بالعالم",
        "🚗👩‍👩‍👧‍👦",
        "\x00\ud800\uffff",
    ],
    ids=lambda text: ascii(text)[:16],
)
@pytest.mark.parametrize("width", [384, 960])
def test_any_prompt_can_be_drawn(prompt: str, fonts: tuple[str, ...], width: int) -> None:
    first, last = draw_strips(
        [Caption(prompt, 1, 2, 25, 100), Caption(prompt, 1, 2, 100, 100)], width, font_names=fonts
    )
    assert first.shape == last.shape
    assert first.shape[1] == width
    assert first.shape[0] % 2 == 0
    assert first.shape[0] < width / 3
    assert (first[:, -2:] == BACKGROUND).all(axis=-1).mean() > 0.9  # nothing runs out of the strip
    assert (last[0] == ACCENT).all()  # the bar is full
    assert 0.2 < (first[0] == ACCENT).all(axis=-1).mean() < 0.3
    assert not np.array_equal(first[8:], last[8:])  # the step is written out


def test_long_prompts_wrap_between_words_and_end_in_dots() -> None:
    font = ImageFont.load_default(14)
    text = "one two three four five six seven eight nine ten eleven twelve"
    assert " ".join(wrap(text, font, 200, 99)) == text
    lines = wrap(text * 9, font, 200, MAX_PROMPT_LINES)
    assert len(lines) == MAX_PROMPT_LINES
    assert lines[-1].endswith("...")
    assert all(font.getlength(line) <= 200 for line in lines)
    unbroken = wrap("x" * 99, font, 200, 99)
    assert "".join(unbroken) == "x" * 99
    assert len(unbroken) > 1


def test_what_no_font_has_is_spelled_out() -> None:
    bundled = best_font("é", 14, ())
    assert spell("naïve café ｆｉｎ", bundled) == "naive cafe fin"
    assert spell("größer — 2×", bundled) == "grosser - 2x"
    assert spell("海a", bundled) == "?a"
