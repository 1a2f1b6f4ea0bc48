"""A clip much larger than its sample: the sample and a few source frames are all that is held."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.preprocessing.media.made import make_clip

WIDTH, HEIGHT = 3840, 2160
NUM_FRAMES = 41
OUTPUT_MB = NUM_FRAMES * 768 * 768 * 3 / 2**20
FRAME_MB = WIDTH * HEIGHT * 1.5 / 2**20
MAX_SOURCE_FRAMES = 12
"""The decoder's references (4 for 4K at level 5.1), its queue, and one in the filters."""

CHILD = """
import resource, sys
from pathlib import Path
from preprocessing.media import fit_video, probe_video
from preprocessing.rules import DatasetRule

def peak_mb():
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (2**20 if sys.platform == "darwin" else 2**10)

before = peak_mb()
clip = probe_video(Path(sys.argv[1]), "clip.mp4")
rule = DatasetRule(num_frames=41, frame_rate=24, width=768, height=768)
fit_video(clip, clip.whole, rule, Path(sys.argv[2]))
print(peak_mb() - before)
"""


def test_4k_is_streamed(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    picture = noise.repeat(8, axis=0).repeat(8, axis=1)
    path = make_clip(
        tmp_path / "clip.mp4",
        (np.roll(picture, 16 * number, axis=1) for number in range(NUM_FRAMES)),
        options={"preset": "ultrafast", "crf": "30"},
    )
    out = tmp_path / "out.npy"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    assert np.load(out, mmap_mode="r").shape == (NUM_FRAMES, 768, 768, 3)
    all_frames_mb = NUM_FRAMES * FRAME_MB
    allowed_mb = OUTPUT_MB + MAX_SOURCE_FRAMES * FRAME_MB
    assert allowed_mb < all_frames_mb, "else this test shows nothing"
    assert float(child.stdout) < allowed_mb
