"""Everything that decodes: clips, images and sound into training pixels and samples (PyAV)."""

from preprocessing.media.clip import Clip, FittedAudio, FittedVideo
from preprocessing.media.errors import TooShort
from preprocessing.media.excerpt import as_dataset_rule, fit_excerpt
from preprocessing.media.fit import fit_video, probe_and_fit_image
from preprocessing.media.mask import FittedMask, fit_mask
from preprocessing.media.playable import write_playable
from preprocessing.media.probe import probe_video
from preprocessing.media.scenes import detect_scenes
from preprocessing.media.sound import fit_audio
from preprocessing.media.source_fit import fit_source
from preprocessing.media.timeline import MIN_SOURCE_FRAMES, Span

__all__ = [
    "MIN_SOURCE_FRAMES",
    "Clip",
    "FittedAudio",
    "FittedMask",
    "FittedVideo",
    "Span",
    "TooShort",
    "as_dataset_rule",
    "detect_scenes",
    "fit_audio",
    "fit_excerpt",
    "fit_mask",
    "fit_source",
    "fit_video",
    "probe_and_fit_image",
    "probe_video",
    "write_playable",
]
