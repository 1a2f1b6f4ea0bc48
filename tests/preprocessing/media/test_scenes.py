"""Where clips are cut: the same places as PySceneDetect's own run, and no frame in between."""

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scenedetect
from scenedetect.detectors import AdaptiveDetector

from preprocessing.media import detect_scenes, probe_video
from preprocessing.media.scenes import FastAdaptiveDetector
from tests.preprocessing.media.made import Picture, make_clip

BUNNY_30_S = Path(__file__).parents[4] / "shared" / "data" / "big_buck_bunny_0_30.webm"


def cuts(path: Path) -> list[int]:
    clip = probe_video(path, path.name)
    spans = detect_scenes(clip)
    assert spans[0].start == 0
    assert spans[-1].end == clip.whole.end
    assert all(a.end == b.start for a, b in itertools.pairwise(spans))
    return [clip.timeline.on_screen(span.start) for span in spans[1:]]


def their_cuts(path: Path) -> list[int]:
    video = scenedetect.open_video(str(path), backend="pyav")
    manager = scenedetect.SceneManager()
    manager.add_detector(AdaptiveDetector())
    manager.detect_scenes(video)
    return [start.frame_num for start, _ in manager.get_scene_list()[1:]]


def shots(lengths: list[int], width: int = 640, height: int = 352) -> list[Picture]:
    """Textures that pan; each shot another one."""
    pictures = []
    for seed, length in enumerate(lengths):
        random = np.random.default_rng(seed)
        cells = random.integers(0, 256, (height // 32, width // 32 + 8, 3), np.uint8)
        wide = cells.repeat(32, axis=0).repeat(32, axis=1)
        pictures += [wide[:, 2 * i : 2 * i + width] for i in range(length)]
    return pictures


def test_hard_cuts_are_found_where_they_are(tmp_path: Path) -> None:
    lengths = [40, 25, 60, 31]
    path = make_clip(tmp_path / "clip.mp4", shots(lengths))
    wanted = [40, 65, 125]
    assert cuts(path) == wanted
    assert their_cuts(path) == wanted


def test_scores_are_pyscenedetects_own() -> None:
    ours, theirs = FastAdaptiveDetector(), AdaptiveDetector()
    scores = []
    for number, picture in enumerate(shots([8, 8], 64, 64)):
        time = scenedetect.FrameTimecode(number, 24.0)
        for detector in (ours, theirs):
            detector.process_frame(time, picture)
        scores.append((ours._frame_score, theirs._frame_score))
    assert max(score for score, _ in scores) > 20
    np.testing.assert_allclose(*zip(*scores, strict=True), rtol=1e-12)


def test_one_shot_is_one_span(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", shots([50]))
    clip = probe_video(path, "clip.mp4")
    assert detect_scenes(clip) == [clip.whole]


def test_cuts_of_a_clip_with_uneven_times(tmp_path: Path) -> None:
    """Spans begin at the frames' own times."""
    pictures = shots([30, 30])
    ticks = [frame * 2 + (frame % 3 == 0) for frame in range(60)]
    path = make_clip(tmp_path / "clip.mkv", pictures, ticks=ticks, time_base=Fraction(1, 50))
    clip = probe_video(path, "clip.mkv")
    first, second = detect_scenes(clip)
    assert len(clip.timeline.frames_in(first)) == 30
    assert len(clip.timeline.frames_in(second)) == 30


def test_real_clip(bikes: Path) -> None:
    assert cuts(bikes) == their_cuts(bikes)


@pytest.mark.skipif(not BUNNY_30_S.exists(), reason=f"no {BUNNY_30_S.name} in ../shared/data")
def test_film() -> None:
    """WebM without duration and frame count; hard cuts at 283, 376 and 551."""
    facts = probe_video(BUNNY_30_S, "film.webm").facts
    assert (facts.num_frames, facts.frame_rate, facts.duration_s) == (720, 24, 30.0)
    found = cuts(BUNNY_30_S)
    assert {283, 376, 551} <= set(found)
    assert found == their_cuts(BUNNY_30_S)
