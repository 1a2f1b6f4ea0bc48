"""Which frames a sample is made of, read back from numbers burnt into the frames."""

import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.errors import MediaError
from preprocessing.media import Span, TooShort, fit_video, probe_video
from tests.preprocessing.media.made import numbered_clip, numbers_in, rule

NTSC = Fraction(30000, 1001)


def own_rate(path: Path, num_frames: int = 9, span: Span | None = None) -> list[int]:
    clip = probe_video(path, path.name)
    out = path.with_suffix(".npy")
    fit_video(clip, span or clip.whole, rule(num_frames=num_frames), out)
    return numbers_in(out)


def at_24(path: Path, num_frames: int) -> tuple[list[int], float]:
    clip = probe_video(path, path.name)
    out = path.with_suffix(".npy")
    asked = rule(num_frames=num_frames, frame_rate=24, auto_scale=True)
    fitted = fit_video(clip, clip.whole, asked, out)
    assert fitted.frame_rate == 24
    return numbers_in(out), fitted.time_scale


RATES = [Fraction(1, 2), 8, Fraction(24000, 1001), 24, 25, NTSC, 60, 240]


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_own_rate_keeps_every_frame(tmp_path: Path, rate: Fraction, suffix: str) -> None:
    path = numbered_clip(tmp_path / f"clip{suffix}", 20, rate=rate)
    clip = probe_video(path, "clip")
    assert pickle.loads(pickle.dumps(clip)) == clip
    assert clip.facts.num_frames == 20
    assert clip.facts.frame_rate == rate
    assert not clip.facts.variable_frame_rate
    assert own_rate(path, 17) == list(range(17))


TRUE_SPEED: dict[Fraction, list[int]] = {
    Fraction(8): [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5],
    Fraction(24000, 1001): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    Fraction(24): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    Fraction(25): [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17],
    NTSC: [0, 1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 16, 17, 19, 20],
    Fraction(60): [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37, 40],
}


@pytest.mark.parametrize("rate", TRUE_SPEED, ids=str)
def test_true_speed_takes_the_nearest_frame(tmp_path: Path, rate: Fraction) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", int(2 * rate), rate=rate)
    assert at_24(path, 17) == (TRUE_SPEED[rate], 1)


@pytest.mark.parametrize(
    ("rate", "count", "expected"),
    [
        (8, 2, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]),
        (24, 10, [0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 7, 7, 8, 9, 9]),
        (25, 17, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
        (NTSC, 17, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]),
        (60, 34, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32]),
    ],
    ids=str,
)
def test_short_clip_is_spread_over_all_frames(
    tmp_path: Path, rate: Fraction, count: int, expected: list[int]
) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", count, rate=rate)
    numbers, time_scale = at_24(path, 17)
    assert numbers == expected
    assert time_scale == pytest.approx(17 / 24 / (count / rate))


def test_variable_rate_is_resampled_by_time(tmp_path: Path) -> None:
    # 30 frames per second, of which the camera dropped some.
    ticks = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 16, 18, 19, 20, 21, 22, 23, 24, 25]
    path = numbered_clip(
        tmp_path / "clip.mp4",
        len(ticks),
        rate=30,
        ticks=[tick * 3000 for tick in ticks],
        time_base=Fraction(1, 90000),
    )
    clip = probe_video(path, "clip")
    assert clip.facts.variable_frame_rate
    assert clip.facts.frame_rate == 30
    assert any("variable" in warning for warning in clip.warnings)
    on_screen = [max(n for n, tick in enumerate(ticks) if tick <= at) for at in range(26)]
    assert own_rate(path, 25) == on_screen[:25]
    nearest = [0, 1, 2, 3, 3, 4, 5, 6, 6, 6, 7, 9, 10, 11, 12, 13, 14]
    assert at_24(path, 17)[0] == nearest, "a late frame waits for its time"


def with_b_frames(out: Path) -> Path:
    options = {"bf": "3", "b-adapt": "0", "g": "12", "crf": "12"}
    return numbered_clip(out, 60, options=options)


def offset_times(out: Path, seconds: int) -> Path:
    ticks = [seconds * 25 + i for i in range(60)]
    return numbered_clip(out, 60, ticks=ticks, time_base=Fraction(1, 25))


TIMES: dict[str, Callable[[Path], Path]] = {
    "b-frames": lambda d: with_b_frames(d / "clip.mp4"),
    "b-frames in mkv": lambda d: with_b_frames(d / "clip.mkv"),
    "b-frames in avi": lambda d: with_b_frames(d / "clip.avi"),
    "mpeg4 b-frames in avi": lambda d: numbered_clip(
        d / "clip.avi", 60, codec="mpeg4", options={"bf": "2", "q": "3"}
    ),
    "late start in mkv": lambda d: offset_times(d / "clip.mkv", 100_000),
    "late start in mp4": lambda d: offset_times(d / "clip.mp4", 1000),
    "negative times, no edit list": lambda d: numbered_clip(
        d / "clip.mp4",
        60,
        options={"bf": "2", "crf": "12"},
        container_options={"use_editlist": "0", "movflags": "negative_cts_offsets"},
    ),
    "vp8 in webm": lambda d: numbered_clip(
        d / "clip.webm",
        60,
        codec="libvpx",
        options={"b": "2M", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "vp9 in mkv": lambda d: numbered_clip(
        d / "clip.mkv", 60, codec="libvpx-vp9", options={"b": "2M", "cpu-used": "8"}
    ),
    "hevc": lambda d: numbered_clip(
        d / "clip.mp4", 60, codec="libx265", options={"x265-params": "log-level=0:crf=12"}
    ),
    "mjpeg in avi": lambda d: numbered_clip(
        d / "clip.avi", 60, codec="mjpeg", pixel_format="yuvj420p", options={}
    ),
}


@pytest.mark.parametrize("make", TIMES.values(), ids=TIMES)
def test_same_frames_however_times_are_written(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path)
    clip = probe_video(path, "clip")
    assert (clip.facts.num_frames, clip.facts.frame_rate) == (60, 25)
    assert clip.facts.duration_s == pytest.approx(60 / 25)
    assert own_rate(path, 57) == list(range(57))
    later = Span(Fraction(31, 25), Fraction(60, 25))
    assert own_rate(path, 25, later) == list(range(31, 56))


def test_no_scene_of_a_long_clip_reaches_into_the_next(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 60, options={"g": "250", "crf": "12"})
    clip = probe_video(path, "clip")
    span = Span(Fraction(10, 25), Fraction(20, 25))
    asked = rule(num_frames=25, auto_scale=True)
    fitted = fit_video(clip, span, asked, tmp_path / "out.npy")
    numbers = numbers_in(tmp_path / "out.npy")
    assert (numbers[0], numbers[-1]) == (10, 19)
    assert fitted.num_source_frames == 10
    assert (fitted.start_s, fitted.end_s) == (pytest.approx(0.4), pytest.approx(0.8))


@pytest.mark.parametrize(("frames", "fits"), [(1, False), (88, False), (89, True), (90, True)])
def test_length_at_the_limit(tmp_path: Path, frames: int, fits: bool) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", frames, rate=NTSC)
    if fits:
        assert own_rate(path, 89) == list(range(89))
    else:
        with pytest.raises(TooShort, match=f"has {frames} frames where 89") as caught:
            own_rate(path, 89)
        assert caught.value.reason == "too_short"
        copy = pickle.loads(pickle.dumps(caught.value))
        assert (copy.message, copy.reason, copy.ctx) == (
            caught.value.message,
            "too_short",
            {"provided_frames": frames, "min_frames": 89},
        )


def test_a_single_frame_is_not_stretched(tmp_path: Path) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 1)
    with pytest.raises(TooShort):
        at_24(path, 9)


def cut_off(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_cut_off_file_counts_what_decodes(tmp_path: Path, suffix: str) -> None:
    """The header still promises 100 frames (`reliability.md` M22)."""
    path = numbered_clip(
        tmp_path / f"clip{suffix}",
        100,
        options={"g": "10", "crf": "12"},
        container_options={"movflags": "faststart"} if suffix == ".mp4" else {},
    )
    clip = probe_video(cut_off(path, 0.6), "clip")
    count = clip.facts.num_frames
    assert 16 < count < 90
    usable = (count - 1) // 8 * 8 + 1
    assert own_rate(path, usable) == list(range(usable))
    with pytest.raises(TooShort):
        own_rate(path, usable + 8)


def test_clip_that_starts_inside_a_group_of_pictures(tmp_path: Path) -> None:
    """Frames before the first key frame never decode; the rest counts from there."""
    options = {"g": "20", "sc_threshold": "0", "bf": "0", "crf": "12"}
    whole = numbered_clip(tmp_path / "whole.mkv", 60, options=options)
    path = tmp_path / "clip.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size and number >= 10:
                packet.stream = copy
                target.mux(packet)
    clip = probe_video(path, "clip")
    numbers = own_rate(path, 33)
    assert clip.facts.num_frames == len(range(20, 60))
    assert numbers == list(range(20, 53))


@pytest.mark.parametrize("seed", range(8))
def test_damaged_packets_fail_by_name_or_not_at_all(tmp_path: Path, seed: int) -> None:
    path = numbered_clip(tmp_path / "clip.mp4", 60)
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for position in random.integers(64, len(data), 200):
        data[position] ^= 1 << int(random.integers(8))
    path.write_bytes(data)
    message = "clip"
    try:
        assert len(own_rate(path, 9)) == 9
    except MediaError as error:
        message = error.message
    assert "clip" in message
    assert str(tmp_path) not in message


def test_lost_frames_are_noticed_while_decoding(tmp_path: Path) -> None:
    """Packets whose content is gone, in a container that is whole."""
    path = numbered_clip(
        tmp_path / "clip.mp4", 60, codec="mjpeg", pixel_format="yuvj420p", options={}
    )
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    end = starts[59] + starts[59] - starts[58] - 8
    data[starts[40] : end] = bytes(end - starts[40])
    path.write_bytes(data)
    clip = probe_video(path, "clip")
    fitted = fit_video(clip, clip.whole, rule(num_frames=33), tmp_path / "out.npy")
    assert numbers_in(tmp_path / "out.npy") == list(range(33))
    assert fitted.num_frames == 33
    with pytest.raises(TooShort):
        fit_video(clip, clip.whole, rule(num_frames=57), tmp_path / "out.npy")
