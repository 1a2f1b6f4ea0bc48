"""Where a clip changes its shot: PySceneDetect's adaptive detector on small frames.

One decoding pass; frames are shrunk before their colours are converted, so that the detector costs
little beside decoding (`reliability.md` 5.2).
"""

import itertools
import logging
from fractions import Fraction
from typing import Final

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from preprocessing.media.clip import Clip
from preprocessing.media.containers import open_video
from preprocessing.media.decode import decoded, video_stream
from preprocessing.media.look import color_of
from preprocessing.media.timeline import Span
from preprocessing.media.yuv import YuvToRgb, plane_of, rgb_matrix

WIDTH: Final = 256
"""Pixels that the detector sees across: its own default for what it shrinks to."""

MIN_SCENE_FRAMES: Final = 15
"""PySceneDetect's default: shorter ones are flashes."""

_FASTER: Final = {"skip_loop_filter": "noref"}
"""Decoder options: frames that no other builds on keep their blocks' edges, unseen at this size."""

_PLANAR_YUV: Final = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p"})
"""What most clips are; OpenCV shrinks it in two thirds of swscale's time."""

# The detector is fed from one thread per process; more only take turns with the decoders.
cv2.setNumThreads(1)
logging.getLogger("pyscenedetect").addHandler(logging.NullHandler())


class FastAdaptiveDetector(AdaptiveDetector):  # type: ignore[misc]  # PySceneDetect has no types
    """PySceneDetect's, with the same score in one pass over the pixels in place of nine."""

    _before: NDArray[np.uint8] | None = None
    """The previous frame in HSV, [H, W, 3]."""

    def _calculate_frame_score(
        self, timecode: FrameTimecode, frame_img: NDArray[np.uint8]
    ) -> float:
        """Mean change of hue, saturation and value, each of weight one."""
        hsv = np.asarray(cv2.cvtColor(frame_img, cv2.COLOR_BGR2HSV), np.uint8)
        before, self._before = self._before, hsv
        return 0.0 if before is None else cv2.norm(hsv, before, cv2.NORM_L1) / hsv.size


def detect_scenes(clip: Clip) -> list[Span]:
    """The shots of ``clip``, in order, without gaps: one span of all of it where none changes."""
    cuts = _cuts(clip)
    edges = [Fraction(0), *(clip.timeline.start_of(cut) for cut in cuts), clip.whole.end]
    return [Span(start, end) for start, end in itertools.pairwise(edges)]


def _cuts(clip: Clip) -> list[int]:
    """Numbers of the frames that begin a new shot."""
    detector = FastAdaptiveDetector(min_scene_len=MIN_SCENE_FRAMES)
    rate = clip.timeline.rate
    shrinker = _Shrinker(clip)
    cuts: list[int] = []
    with open_video(clip.path, clip.name) as (container, _):
        stream = video_stream(container, clip.name)
        stream.codec_context.options = {**stream.codec_context.options, **_FASTER}
        for number, frame in enumerate(decoded(container, stream, clip.name, deinterlace=False)):
            time = FrameTimecode(number, rate)
            cuts += [cut.frame_num for cut in detector.process_frame(time, shrinker.shrink(frame))]
    end = clip.timeline.num_frames
    return [cut for cut in cuts if 0 < cut < end]


class _Shrinker:
    """Frames as the detector wants them: small, BGR.

    Like PySceneDetect's own shrinking this mixes the four nearest pixels and looks at no others.
    """

    def __init__(self, clip: Clip) -> None:
        shrink = max(1.0, clip.facts.coded_width / WIDTH)
        self._width = round(clip.facts.coded_width / shrink)
        self._height = max(1, round(clip.facts.coded_height / shrink))
        self._to_bgr = YuvToRgb(self._width, self._height)
        self._swscale = VideoReformatter()  # One for all: to set it up takes half a millisecond.

    def shrink(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """[H, W, 3]"""
        if frame.format.name not in _PLANAR_YUV:
            small = self._swscale.reformat(
                frame, self._width, self._height, "bgr24", interpolation="FAST_BILINEAR", threads=1
            )
            return np.asarray(small.to_ndarray(), np.uint8)
        size = self._width, self._height
        planes = [cv2.resize(plane_of(frame, index), size) for index in range(3)]
        color = color_of(frame)
        return self._to_bgr.convert(
            planes, rgb_matrix(color.matrix, full_range=color.full_range)[::-1]
        )
