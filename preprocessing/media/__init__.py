"""Everything that decodes: clips, images and sound into training pixels and samples (PyAV)."""

from preprocessing.media.clip import Clip, FittedAudio, FittedVideo
from preprocessing.media.errors import TooShort
from preprocessing.media.fit import fit_video, probe_and_fit_image
from preprocessing.media.playable import write_playable
from preprocessing.media.probe import probe_video
from preprocessing.media.scenes import detect_scenes
from preprocessing.media.sound import fit_audio
from preprocessing.media.timeline import Span

__all__ = [
    "Clip",
    "FittedAudio",
    "FittedVideo",
    "Span",
    "TooShort",
    "detect_scenes",
    "fit_audio",
    "fit_video",
    "probe_and_fit_image",
    "probe_video",
    "write_playable",
]
