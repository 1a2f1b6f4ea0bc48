"""The mask of one sample: in place and in time with its clip, reduced to latent cells.

Users paint white what is to be regenerated. It is turned around into "keep" here, once; everything
behind this file says keep. The mask takes the resize and crop of its clip, not its own, and shows
at each frame what it shows at that frame's time (`ltx-training.md` 1.5).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import numpy as np

from preprocessing.errors import MediaError
from preprocessing.latent_mask import LatentMask
from preprocessing.media.clip import Clip, FittedVideo
from preprocessing.media.containers import AVI, open_video
from preprocessing.media.decode import video_stream
from preprocessing.media.errors import MissingFrames
from preprocessing.media.fit import numbered
from preprocessing.media.graph import FrameFitter
from preprocessing.media.mask_image import (
    White,
    is_image,
    mean_of,
    read_mask_image,
    stretched_like,
)
from preprocessing.media.probe import probe_video, recount
from preprocessing.media.timeline import Timeline
from preprocessing.names import short
from preprocessing.rules import LATENT_STRIDE_PIXELS

SAME_SHAPE: Final = 0.02
"""Relative difference in aspect ratio that nobody notices: rounding to even or whole blocks."""


@dataclass(frozen=True)
class FittedMask:
    """A mask on disk, bool [f, h, w], true = keep."""

    share: float
    """Of its cells that is regenerated; above 0 and below 1."""
    description: str
    """What was done, for the report."""
    warnings: tuple[str, ...] = ()


def fit_mask(
    path: Path, name: str, clip: Clip, fitted: FittedVideo, out: Path, *, pad: bool = False
) -> FittedMask:
    """Write the mask of the sample ``fitted``, cut from ``clip``, to ``out`` as .npy.

    ``path`` is an image, which holds for every frame, or a video. A video mask that ends before its
    clip keeps showing its last frame; what it has beyond its clip is not looked at. ``pad`` is for
    samples of any size: their edge goes on to the next whole cell.

    Raises `MediaError` for a mask that can't be read, that regenerates nothing or everything, and
    for a video mask of a clip that keeps no steady time.
    """
    mask = LatentMask(fitted.num_frames, fitted.height, fitted.width, pad=pad)
    if is_image(path):
        shape, how = _put_image(path, name, fitted, mask)
    else:
        _require_steady(clip, name)
        shape, how = _put_video(path, name, clip, fitted, mask)
    edited = int(np.count_nonzero(~mask.kept))
    if edited == 0:
        raise _useless(
            name,
            "mask_keeps_all",
            f"{short(name)} regenerates nothing of {short(clip.name)}: in no frame of the sample "
            f"is half of a cell of {LATENT_STRIDE_PIXELS}x{LATENT_STRIDE_PIXELS} pixels white. "
            "Paint what is to be regenerated white, a little larger, and inside the centre crop.",
        )
    if edited == mask.kept.size:
        raise _useless(
            name,
            "mask_keeps_nothing",
            f"{short(name)} regenerates all of {short(clip.name)}: nothing is black in all frames "
            "of a cell. Paint what is to be kept black.",
        )
    np.save(out, mask.kept)
    share = edited / mask.kept.size
    return FittedMask(
        share=share,
        description=f"{short(name)}, {how}: {100 * share:.1f} % of the cells regenerated",
        warnings=_shape_warnings(name, shape, clip),
    )


def frames_beside(mask: Timeline, clip: Timeline, times: Sequence[Fraction]) -> list[int]:
    """For each time of the clip, the mask's frame: the one on screen, the last one after its end.

    Frame by frame at the same nominal rate, so that a rate written as 30 for 30000/1001 does not
    drift.
    """
    if mask.counts_at(clip.rate):
        return [min(clip.on_screen(time), mask.num_frames - 1) for time in times]
    return [mask.on_screen(time) for time in times]


def _put_image(
    path: Path, name: str, fitted: FittedVideo, mask: LatentMask
) -> tuple[tuple[int, int], str]:
    white = read_mask_image(path, name)
    height, width = white.shape
    placed = stretched_like(white, fitted.cover, fitted.width, fitted.height)
    mask.put(_keep(placed), range(fitted.num_frames))
    return (width, height), f"image of {width}x{height}"


def _put_video(
    path: Path, name: str, clip: Clip, fitted: FittedVideo, mask: LatentMask
) -> tuple[tuple[int, int], str]:
    video = _probe(path, name)
    try:
        _put_frames(video, clip, fitted, mask)
    except MissingFrames:
        video = recount(video)
        try:
            _put_frames(video, clip, fitted, mask)
        except MissingFrames:
            raise MediaError(
                f"{short(name)} is damaged: some of its frames do not decode. Export it again.",
                reason="unreadable",
            ) from None
    facts, times = video.facts, video.timeline
    how = f"video of {facts.width}x{facts.height}, {times.num_frames} frames at {times.rate}"
    shown_last = fitted.source_times[-1]
    if times.counts_at(clip.timeline.rate):
        held = clip.timeline.on_screen(shown_last) >= times.num_frames
    else:
        how += ", matched by time"
        held = times.duration <= shown_last
    if held:
        how += f", last frame held from {float(times.duration):.2f} s"
    return (facts.width, facts.height), how


def _put_frames(video: Clip, clip: Clip, fitted: FittedVideo, mask: LatentMask) -> None:
    """Decode the mask's frames that are wanted, each once. Raises `MissingFrames`."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, index in enumerate(
        frames_beside(video.timeline, clip.timeline, fitted.source_times)
    ):
        places[index].append(place)
    last = max(places)
    with open_video(video.path, video.name) as (container, _):
        stream = video_stream(container, video.name)
        fitter = FrameFitter(
            fitted.width,
            fitted.height,
            lambda: stream.sample_aspect_ratio,
            video.name,
            cover=fitted.cover,
        )
        for index, frame in numbered(container, stream, video, min(places)):
            if index in places:
                mask.put(_keep(mean_of(fitter.fit(frame))), places.pop(index))
            if index >= last:
                break
    if places:
        raise MissingFrames


def _keep(white: White) -> White:
    """From the user's convention (white = regenerate) to ours (255 = keep): the only place."""
    return 255 - white


def _probe(path: Path, name: str) -> Clip:
    try:
        return probe_video(path, name)
    except MediaError as error:
        if error.reason != "not_a_video":
            raise
        raise MediaError(
            f"{short(name)} is neither an image (PNG, JPEG, BMP, WebP) nor a video. A mask is "
            "either.",
            reason="not_a_mask",
        ) from error


def _require_steady(clip: Clip, name: str) -> None:
    """Refuse a video mask for a clip whose frames can't be counted off beside it."""
    untimed = not clip.has_times and clip.facts.container != AVI.title
    if clip.timeline.variable or untimed:
        what = "a variable frame rate" if clip.timeline.variable else "no usable frame times"
        raise MediaError(
            f"{short(clip.name)} has {what}, so its frames can't be matched with those of the "
            f"video mask {short(name)}. Re-encode the clip at a constant frame rate, or use an "
            "image mask.",
            reason="mask_out_of_step",
            type="value_error",
        )


def _useless(name: str, reason: str, message: str) -> MediaError:
    return MediaError(message, reason=reason, type="value_error", ctx={"mask": name})


def _shape_warnings(name: str, shape: tuple[int, int], clip: Clip) -> tuple[str, ...]:
    width, height = shape
    facts = clip.facts
    if abs(width * facts.height / (height * facts.width) - 1) <= SAME_SHAPE:
        return ()
    return (
        f"{short(name)} has another shape ({width}x{height}) than its clip "
        f"({facts.width}x{facts.height}) and was stretched to it",
    )
