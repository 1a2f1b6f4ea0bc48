"""A video mask keeps step with its clip: by time, held at its end, cut, slowed down along."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.errors import MediaError
from preprocessing.media.mask import frames_beside
from preprocessing.media.timeline import Timeline, measure
from tests.preprocessing.masks import (
    box,
    fit,
    flashes,
    write_mask_image,
    write_mask_video,
)
from tests.preprocessing.media.made import make_clip, numbered, numbered_clip, numbers_in, rule

NTSC = Fraction(30000, 1001)


def edited_latents(kept: Any) -> list[int]:
    return np.flatnonzero(~kept.all(axis=(1, 2))).tolist()


BY_TIME: dict[str, dict[str, Any]] = {
    # 25 frames are taken at 25 per second; white says which mask frames flash.
    "same rate, same length": {"count": 25, "white": (9,), "edited": [2]},
    "first frame": {"count": 25, "white": (0,), "edited": [0]},
    "held: the last frame is white": {"count": 12, "white": (11,), "edited": [2, 3]},
    "held: the last frame is black": {"count": 12, "white": (3,), "edited": [1]},
    "a single frame": {"count": 1, "white": (0,), "edited": [0, 1, 2, 3]},
    "longer": {"count": 60, "white": (17, 40), "edited": [3]},
    "half the rate": {"count": 30, "rate": Fraction(25, 2), "white": (4,), "edited": [1, 2]},
    "twice the rate": {"count": 60, "rate": 50, "white": (17, 18), "edited": [2]},
    "twice the rate, between frames": {"count": 60, "rate": 50, "white": (5, 34), "edited": [3]},
    "30 beside 25": {"count": 40, "rate": 30, "white": (28,), "edited": [3]},
    "half the rate and shorter": {
        "count": 6,
        "rate": Fraction(25, 2),
        "white": (5,),
        "edited": [2, 3],
    },
}


@pytest.mark.parametrize("case", BY_TIME)
def test_mask_frames_are_those_of_the_same_time(case: str, tmp_path: Path) -> None:
    given = BY_TIME[case]
    clip = numbered_clip(tmp_path / "clip.mp4", 25)
    frames = flashes(given["count"], *given["white"])
    mask = write_mask_video(tmp_path / "mask.mp4", frames, rate=given.get("rate", 25))
    kept, *_ = fit(clip, mask, rule(num_frames=25), tmp_path)
    assert edited_latents(kept) == given["edited"]


def of_rate(rate: Fraction, count: int) -> Timeline:
    step = 90_000 / rate
    return measure([int(i * step) for i in range(count)], Fraction(1, 90_000), [rate], Fraction(0))


@pytest.mark.parametrize("clip_rate", [NTSC, Fraction(30)], ids=str)
@pytest.mark.parametrize("mask_rate", [NTSC, Fraction(30)], ids=str)
@pytest.mark.parametrize(
    ("clip_count", "mask_count", "first", "middle", "last"),
    [
        # 1001 s at 30 are 1000 s at 29.97: after 17 s the two would be half a frame apart.
        pytest.param(2000, 2000, 0, 1500, 1999, id="as many"),
        pytest.param(2000, 1999, 0, 1500, 1998, id="one less: its last is held"),
        pytest.param(2000, 2001, 0, 1500, 1999, id="one more: cut"),
        pytest.param(2000, 500, 0, 499, 499, id="a quarter"),
        pytest.param(2000, 1, 0, 0, 0, id="a single frame"),
    ],
)
def test_at_nearly_the_same_rate_it_goes_frame_by_frame(
    clip_rate: Fraction,
    mask_rate: Fraction,
    clip_count: int,
    mask_count: int,
    first: int,
    middle: int,
    last: int,
) -> None:
    clip, mask = of_rate(clip_rate, clip_count), of_rate(mask_rate, mask_count)
    chosen = frames_beside(mask, clip, [clip.start_of(i) for i in (0, 1500, 1999)])
    assert chosen == [first, middle, last]


def test_one_frame_less_at_29_97_beside_30(tmp_path: Path) -> None:
    """Mask frame 20 flashes: it is clip frame 20, in the latent frame of frames 17 to 24."""
    clip = numbered_clip(tmp_path / "clip.mp4", 25, rate=30)
    mask = write_mask_video(tmp_path / "mask.mp4", flashes(24, 20), rate=NTSC)
    kept, made, *_ = fit(clip, mask, rule(num_frames=25), tmp_path)
    assert edited_latents(kept) == [3]
    assert "24 frames at 30000/1001, last frame held from 0.80 s: " in made.description
    edge = write_mask_video(tmp_path / "edge.mp4", flashes(24, 17), rate=NTSC)
    assert edited_latents(fit(clip, edge, rule(num_frames=25), tmp_path)[0]) == [3]
    edge = write_mask_video(tmp_path / "edge.mp4", flashes(24, 16), rate=NTSC)
    assert edited_latents(fit(clip, edge, rule(num_frames=25), tmp_path)[0]) == [2]


def test_a_mask_follows_a_clip_that_is_slowed_down(tmp_path: Path) -> None:
    """auto_scale stretches 10 frames over 25: mask frame k is where clip frame k is."""
    clip = numbered_clip(tmp_path / "clip.mp4", 10)
    mask = write_mask_video(tmp_path / "mask.mp4", flashes(10, 6))
    kept, _, _, fitted = fit(clip, mask, rule(num_frames=25, auto_scale=True), tmp_path)
    assert fitted.time_scale > 1
    shown = [place for place, n in enumerate(numbers_in(tmp_path / "frames.npy")) if n == 6]
    assert len(shown) >= 2
    assert edited_latents(kept) == sorted({-(-place // 8) for place in shown})


def test_a_mask_follows_a_clip_that_is_resampled(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.mp4", 60, rate=50)
    mask = write_mask_video(tmp_path / "mask.mp4", flashes(60, 20, 21), rate=50)
    kept, *_ = fit(clip, mask, rule(num_frames=25, frame_rate=24, auto_scale=True), tmp_path)
    shown = numbers_in(tmp_path / "frames.npy")
    assert edited_latents(kept) == sorted({-(-shown.index(n) // 8) for n in (20, 21) if n in shown})


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([8, 12, 24, 25, 30, 50, 60, NTSC]),
    st.integers(1, 200),
    st.sampled_from([8, 12, 24, 25, 30, 50, 60, NTSC]),
    st.integers(1, 200),
)
def test_every_time_has_the_frame_on_screen(
    clip_rate: Fraction, clip_count: int, mask_rate: Fraction, mask_count: int
) -> None:
    clip, mask = (
        Timeline(tuple(range(count)), 1 / Fraction(rate), Fraction(rate), False, 1 / Fraction(rate))
        for rate, count in ((clip_rate, clip_count), (mask_rate, mask_count))
    )
    times = [clip.start_of(i) for i in range(clip_count)]
    chosen = frames_beside(mask, clip, times)
    assert chosen == sorted(chosen)
    for time, frame in zip(times, chosen, strict=True):
        if clip_rate == mask_rate or {clip_rate, mask_rate} == {30, NTSC}:
            assert frame == min(time * clip_rate, mask_count - 1)
        elif time >= mask.duration:
            assert frame == mask_count - 1
        else:
            assert frame / Fraction(mask_rate) <= time < (frame + 1) / Fraction(mask_rate)


DESCRIPTIONS = {
    "parallel": (25, 25, "video of 160x96, 25 frames at 25: "),
    "held": (10, 25, "10 frames at 25, last frame held from 0.40 s: "),
    "other rate": (40, 30, "40 frames at 30, matched by time: "),
}


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_the_report_says_how(case: str, tmp_path: Path) -> None:
    count, rate, words = DESCRIPTIONS[case]
    clip = numbered_clip(tmp_path / "clip.mp4", 25)
    mask = write_mask_video(tmp_path / "mask.mp4", flashes(count, *range(count)), rate=rate)
    _, made, *_ = fit(clip, mask, rule(num_frames=25), tmp_path)
    assert f"{words}40.0 % of the cells regenerated" in made.description


# Refusals.


def jerky(out: Path) -> Path:
    ticks = [0, 1, 2, 5, 6, 9, 10, 11, 15, 16, 17, 21, 22, 25]
    return make_clip(
        out, map(numbered, range(14)), ticks=[t * 3000 for t in ticks], time_base=Fraction(1, 90000)
    )


def test_m35_a_jerky_clip_takes_no_video_mask_but_an_image(tmp_path: Path) -> None:
    clip = jerky(tmp_path / "clip.mp4")
    mask = write_mask_video(tmp_path / "clip_mask.mp4", flashes(14, 3))
    with pytest.raises(MediaError) as caught:
        fit(clip, mask, rule(), tmp_path)
    for words in ("clip.mp4 has a variable", "clip_mask.mp4", "Re-encode", "use an image mask"):
        assert words in caught.value.message
    assert (caught.value.reason, caught.value.type) == ("mask_out_of_step", "value_error")
    still = write_mask_image(tmp_path / "m.png", box(160, 96, (0, 0, 0.4, 1)))
    assert edited_latents(fit(clip, still, rule(), tmp_path)[0]) == [0, 1]


def test_an_avi_keeps_no_times_but_a_steady_rate(tmp_path: Path) -> None:
    clip = numbered_clip(tmp_path / "clip.avi", 12, codec="mpeg4", options={})
    mask = write_mask_video(tmp_path / "clip_mask.mp4", flashes(12, 3))
    assert edited_latents(fit(clip, mask, rule(), tmp_path)[0]) == [1]


def test_a_jerky_mask_beside_a_steady_clip(tmp_path: Path) -> None:
    """It is matched by time."""
    clip = numbered_clip(tmp_path / "clip.mp4", 12)
    ticks = [0, 3, 4, 9]
    mask = write_mask_video(
        tmp_path / "mask.mkv",
        flashes(4, 2),
        ticks=[tick * 40 for tick in ticks],
        time_base=Fraction(1, 1000),
    )
    assert edited_latents(fit(clip, mask, rule(), tmp_path)[0]) == [1]


BLACK, WHITE = (box(160, 96, (0, 0, 0, 0)), box(160, 96, (0, 0, 1, 1)))
USELESS = {
    "all black": ([BLACK], "mask_keeps_all", "regenerates nothing of clip.mp4"),
    "all white": ([WHITE], "mask_keeps_nothing", "regenerates all of clip.mp4"),
    "a speck": ([box(160, 96, (0.1, 0.1, 0.2, 0.2))], "mask_keeps_all", "half of a cell"),
    "a black speck": ([255 - box(160, 96, (0.1, 0.1, 0.2, 0.2))], "mask_keeps_nothing", "black"),
    "white after the sample's end": ([BLACK] * 9 + [WHITE], "mask_keeps_all", "nothing"),
    "white wanders over all of it": (
        [WHITE, *(box(160, 96, (i / 8, 0, i / 8 + 0.2, 1)) for i in range(8))],
        "mask_keeps_nothing",
        "in all frames",
    ),
}


@pytest.mark.parametrize("case", USELESS)
def test_a_mask_that_trains_nothing_is_refused(case: str, tmp_path: Path) -> None:
    frames, reason, words = USELESS[case]
    clip = numbered_clip(tmp_path / "clip.mp4", 9)
    if len(frames) == 1:
        mask = write_mask_image(tmp_path / "clip_mask.png", frames[0])
    else:
        mask = write_mask_video(tmp_path / "clip_mask.mp4", frames)
    with pytest.raises(MediaError) as caught:
        fit(clip, mask, rule(), tmp_path)
    assert caught.value.reason == reason
    assert caught.value.type == "value_error"
    assert words in caught.value.message
    assert mask.name in caught.value.message
    assert not (tmp_path / "keep_mask.npy").exists()


BROKEN = {
    "a text": (b"not a mask", "neither an image"),
    "empty": (b"", "neither an image"),
    "a gif": (b"GIF89a" + bytes(100), "neither an image"),
    "a cut off png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "can't be decoded"),
    "zeros after a jpeg's head": (b"\xff\xd8\xff\xe0" + bytes(100), "can't be decoded"),
    "a bitmap of nothing": (b"BM" + bytes(100), "can't be decoded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_mask(case: str, tmp_path: Path) -> None:
    content, words = BROKEN[case]
    mask = tmp_path / "clip_mask.png"
    mask.write_bytes(content)
    with pytest.raises(MediaError, match=words) as caught:
        fit(numbered_clip(tmp_path / "clip.mp4", 9), mask, rule(), tmp_path)
    assert "clip_mask.png" in caught.value.message


def test_a_giant_mask_is_not_decoded(tmp_path: Path) -> None:

    clip = numbered_clip(tmp_path / "clip.mp4", 9)
    for side, words in ((8100, "65.*at most 64 million|8100x8100"), (20_000, "far more than 64")):
        mask = tmp_path / "m.png"
        Image.new("1", (side, side)).save(mask)
        with pytest.raises(MediaError, match=words) as caught:
            fit(clip, mask, rule(), tmp_path)
        assert caught.value.reason == "too_large"


def test_an_animation_is_no_image(tmp_path: Path) -> None:

    first, second = (Image.fromarray(frame) for frame in (BLACK, WHITE))
    clip = numbered_clip(tmp_path / "clip.mp4", 9)
    for name in ("m.webp", "m.png"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        with pytest.raises(MediaError, match="animation") as caught:
            fit(clip, tmp_path / name, rule(), tmp_path)
        # Of a mask, whatever the training takes as clips: inpaint takes no images there.
        assert caught.value.ctx == {"supported_formats": [".png", ".jpg", ".jpeg", ".bmp", ".webp"]}
