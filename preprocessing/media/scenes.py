"""Where a clip changes its shot: PySceneDetect's adaptive detector on small frames.

One decoding pass; frames are shrunk by swscale while their colours are converted, so that the
detector costs little beside decoding (`reliability.md` 5.2).
"""

import itertools
import logging
from fractions import Fraction
from typing import Final

import cv2
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from preprocessing.media.clip import Clip
from preprocessing.media.containers import open_video
from preprocessing.media.decode import decoded, video_stream
from preprocessing.media.timeline import Span

WIDTH: Final = 256
"""Pixels that the detector sees across: its own default for what it shrinks to."""

MIN_SCENE_FRAMES: Final = 15
"""PySceneDetect's default: shorter ones are flashes."""

_FASTER: Final = {"skip_loop_filter": "noref"}
"""Decoder options: frames that no other builds on keep their blocks' edges, unseen at this size."""

# The detector is fed from one thread per process; more only take turns with the decoders.
cv2.setNumThreads(1)
logging.getLogger("pyscenedetect").addHandler(logging.NullHandler())


def detect_scenes(clip: Clip) -> list[Span]:
    """The shots of ``clip``, in order, without gaps: one span of all of it where none changes."""
    cuts = _cuts(clip)
    edges = [Fraction(0), *(clip.timeline.start_of(cut) for cut in cuts), clip.whole.end]
    return [Span(start, end) for start, end in itertools.pairwise(edges)]


def _cuts(clip: Clip) -> list[int]:
    """Numbers of the frames that begin a new shot."""
    detector = AdaptiveDetector(min_scene_len=MIN_SCENE_FRAMES)
    rate = clip.timeline.rate
    shrink = max(1.0, clip.facts.coded_width / WIDTH)
    width = round(clip.facts.coded_width / shrink)
    height = max(1, round(clip.facts.coded_height / shrink))
    cuts: list[int] = []
    with open_video(clip.path, clip.name) as (container, _):
        stream = video_stream(container, clip.name)
        stream.codec_context.options = {**stream.codec_context.options, **_FASTER}
        for number, frame in enumerate(decoded(container, stream, clip.name, deinterlace=False)):
            small = frame.reformat(width, height, "bgr24", interpolation="FAST_BILINEAR", threads=1)
            time = FrameTimecode(number, rate)
            cuts += [cut.frame_num for cut in detector.process_frame(time, small.to_ndarray())]
    end = clip.timeline.num_frames
    return [cut for cut in cuts if 0 < cut < end]
