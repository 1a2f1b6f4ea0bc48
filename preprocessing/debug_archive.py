"""What a training saw, for people: each sample as a playable file with its caption, and the report.

report.json
0001_dog.mp4      0001_dog.txt       sample 0001, made from dog.mov
0002_day_cat.mp4  0002_day_cat.txt   sample 0002, made from day/cat.mp4
0002_day_cat_mask.png                its keep mask laid over some frames, where clips have masks
"""

import re
import tempfile
import zipfile
from pathlib import Path

from preprocessing.manifest import REPORT_FILE, Manifest, Sample
from preprocessing.media import write_playable
from preprocessing.names import without_suffix
from preprocessing.show import write_strip

MAX_STEM_CHARS = 80
"""Characters taken of a source's name: it stays readable, and legal on every file system."""

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_SUFFIX = {"video": ".mp4", "image": ".png"}


def write_debug_archive(prepared: Path, out: Path) -> None:
    """Pack the dataset that `prepare` wrote to ``prepared`` as a zip at ``out``.

    Holds one sample at a time. ``out`` appears whole or not at all; beside it, there must be room
    for one more playable sample. Raises `FileNotFoundError` where no prepared dataset is.
    """
    manifest = Manifest.load(prepared)
    aside = out.with_name(out.name + ".part")
    try:
        with (
            tempfile.TemporaryDirectory(dir=out.parent) as folder,
            zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive,
        ):
            archive.write(prepared / REPORT_FILE, REPORT_FILE)
            for sample in manifest.samples:
                stem = _stem(sample)
                playable = Path(folder) / f"{sample.id}{_SUFFIX[manifest.kind]}"
                _play(prepared, sample, playable)
                archive.write(playable, stem + playable.suffix)
                playable.unlink()
                archive.writestr(f"{stem}.txt", sample.caption.encode())
                if sample.keep_mask is not None:
                    strip = Path(folder) / f"{sample.id}_mask.png"
                    write_strip(prepared, strip, sample_id=sample.id)
                    archive.write(strip, f"{stem}_mask.png")
                    strip.unlink()
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


def _stem(sample: Sample) -> str:
    """Sample id and source: unique by the one, recognisable by the other."""
    readable = _NOT_IN_NAMES.sub("_", without_suffix(sample.source)).strip("_.")
    return f"{sample.id}_{readable[-MAX_STEM_CHARS:]}"


def _play(prepared: Path, sample: Sample, out: Path) -> None:
    audio = sample.audio
    write_playable(
        prepared / sample.frames,
        sample.frame_rate,
        None if audio is None else prepared / audio.path,
        None if audio is None else audio.sample_rate,
        out,
    )
