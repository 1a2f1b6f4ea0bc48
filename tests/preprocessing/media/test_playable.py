"""Prepared samples written for people to look at come back as they were."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from preprocessing.media import probe_video, write_playable
from tests.preprocessing.media.made import number_in, numbered, patch, tone


@pytest.mark.parametrize("rate", [24, Fraction(30000, 1001)], ids=str)
@pytest.mark.parametrize("sample_rate", [None, 8_000, 44_100, 48_000])
def test_clip(tmp_path: Path, rate: Fraction | int, sample_rate: int | None) -> None:
    frames, audio = tmp_path / "frames.npy", None
    np.save(frames, np.stack([numbered(number) for number in range(33)]))
    if sample_rate is not None:
        audio = tmp_path / "audio.npy"
        np.save(audio, tone(33 / float(rate), 440, sample_rate))
    out = tmp_path / "out.mp4"
    write_playable(frames, Fraction(rate), audio, sample_rate, out)
    facts = probe_video(out, "out.mp4").facts
    assert (facts.num_frames, facts.frame_rate, facts.codec) == (33, rate, "h264")
    assert (facts.width, facts.height) == (160, 96)
    assert facts.color == "bt709, limited range"
    assert (facts.audio is not None) == (sample_rate is not None)
    if facts.audio is not None:
        assert facts.audio.duration_s == pytest.approx(33 / float(rate), abs=0.05)
    with av.open(str(out)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [number_in(picture) for picture in pictures] == list(range(33))


def test_colours(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.stack([patch((200, 30, 60))] * 9))
    out = tmp_path / "out.mp4"
    write_playable(tmp_path / "frames.npy", Fraction(24), None, None, out)
    with av.open(str(out)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(picture - np.array((200, 30, 60), float)).max() <= 4


def test_image(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", numbered(5)[None])
    out = tmp_path / "out.png"
    write_playable(tmp_path / "frames.npy", Fraction(24), None, None, out)
    with av.open(str(out)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert (picture == numbered(5)).all()
