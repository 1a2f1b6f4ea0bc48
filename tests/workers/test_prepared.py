"""Datasets in the store: taken when they are whole, prepared again when a part is gone."""

from fractions import Fraction
from pathlib import Path

import pytest

from preprocessing.manifest import MANIFEST_FILE, Audio, Manifest, Sample
from workers.prepare import fetch_prepared, is_whole
from workers.runtime import Runtime

KEY = "prepared/" + "ab" * 32
FILES = ("samples/1.frames.npy", "samples/1.audio.npy", "samples/1.keep_mask.npy")


@pytest.fixture
def stored(runtime: Runtime, tmp_path: Path) -> Path:
    """A dataset of one sample with everything, in the store too."""
    folder = tmp_path / "made"
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    sample = Sample(
        id="1",
        frames=FILES[0],
        audio=Audio(path=FILES[1], sample_rate=48_000),
        keep_mask=FILES[2],
        caption="",
        frame_rate=Fraction(24),
        source="a.mp4",
    )
    Manifest(
        kind="video", width=64, height=64, num_frames=9, with_audio=True, samples=(sample,)
    ).save(folder)
    runtime.storage.put_tree(KEY, folder, last=MANIFEST_FILE)
    return folder


def test_a_whole_dataset_is_taken(runtime: Runtime, stored: Path, tmp_path: Path) -> None:
    assert is_whole(stored)
    assert fetch_prepared(runtime.storage, KEY, tmp_path / "dataset")
    assert is_whole(tmp_path / "dataset")


def test_there_is_none(runtime: Runtime, tmp_path: Path) -> None:
    assert not fetch_prepared(runtime.storage, KEY, tmp_path / "dataset")


@pytest.mark.parametrize("name", FILES)
def test_a_rest_is_not_taken_and_makes_way(
    runtime: Runtime, stored: Path, tmp_path: Path, name: str
) -> None:
    runtime.storage.delete(f"{KEY}/{name}")
    assert not fetch_prepared(runtime.storage, KEY, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
    runtime.storage.put_tree(KEY, stored, last=MANIFEST_FILE)
    assert fetch_prepared(runtime.storage, KEY, tmp_path / "dataset")
