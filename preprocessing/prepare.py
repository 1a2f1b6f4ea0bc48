"""The whole way from an archive to a prepared dataset, and the account of it."""

import shutil
from pathlib import Path

from preprocessing.errors import DatasetError
from preprocessing.events import EventLog
from preprocessing.folder import with_links
from preprocessing.ledger import Fitted, Ledger, Record, became
from preprocessing.looks import LOOKS_FOLDER, write_looks
from preprocessing.manifest import MANIFEST_FILE, REPORT_FILE, Audio, Manifest, Sample
from preprocessing.masks import add_masks
from preprocessing.pool import Pool
from preprocessing.report import Became, DatasetReport
from preprocessing.rules import DatasetRule
from preprocessing.stages import Run, add_sound, fit_images, fit_videos, unpack

SAMPLES_FOLDER = "samples"
WORK_FOLDER = "work"

ADVISED_CLIPS = 10
"""Files a dataset should have at least (fal, `/t2v`, Dataset Format)."""


def prepare(
    archive: Path, rule: DatasetRule, out: Path, events: EventLog, *, processes: int
) -> DatasetReport:
    """Prepare ``archive``, a zip or a folder, for a training that asks for ``rule``.

    Writes `preprocessing.manifest`'s layout to ``out``: the samples, ``report.json``, and last
    ``manifest.json``. What an earlier run left there is removed first. Raises `DatasetError` when
    the dataset is refused; ``report.json`` is then written, with the reason for every clip, and
    there is no manifest. Anything else that is raised (`OSError`) is no fault of the dataset.

    Up to ``processes`` clips are worked on at once, each in a process of its own; this process
    never holds a frame. Scripts that call this need ``if __name__ == "__main__":``.
    """
    _clear(out)
    (out / WORK_FOLDER).mkdir(parents=True)
    (out / SAMPLES_FOLDER).mkdir()
    ledger = Ledger(rule)
    try:
        with Pool(processes, out, with_links(archive) if archive.is_dir() else []) as pool:
            run = Run(rule, out / WORK_FOLDER, events, pool, ledger)
            unpacked = unpack(archive, run)
            if unpacked.kind == "image":
                fit_images(unpacked, run)
            else:
                fit_videos(unpacked, run)
            add_masks(unpacked, run)
            with_audio = add_sound(run)
            samples = _number_and_keep(ledger.records, out)
            write_looks(out, [sample for made in samples for _, sample in made], pool)
    except DatasetError as error:
        _clear(out)
        ledger.report(problem=error).save(out)
        events.log(error.message, level="ERROR")
        raise
    except BaseException:
        _clear(out)
        raise
    shutil.rmtree(out / WORK_FOLDER)
    ledger.warnings += _advice(ledger, rule)
    report = ledger.report([[part for part, _ in made] for made in samples])
    report.save(out)
    Manifest(
        kind=unpacked.kind,
        width=rule.width,
        height=rule.height,
        num_frames=1 if unpacked.kind == "image" else rule.num_frames,
        with_audio=with_audio,
        samples=tuple(sample for made in samples for _, sample in made),
    ).save(out)
    return report


def _clear(out: Path) -> None:
    """Remove what a preparation writes, and nothing else that may lie in ``out``."""
    for file in (MANIFEST_FILE, REPORT_FILE):
        (out / file).unlink(missing_ok=True)
    for folder in (SAMPLES_FOLDER, WORK_FOLDER, LOOKS_FOLDER):
        if (out / folder).exists():
            shutil.rmtree(out / folder)


def _number_and_keep(records: list[Record], out: Path) -> list[list[tuple[Became, Sample]]]:
    """Number the samples without gaps and move their files to where the manifest says."""
    number = 0
    kept = []
    for record in records:
        made = []
        for fitted in record.fitted:
            number += 1
            id = f"{number:04d}"
            made.append((became(id, fitted), _kept(id, record, fitted, out)))
        kept.append(made)
    return kept


def _kept(id: str, record: Record, fitted: Fitted, out: Path) -> Sample:
    """Move one sample's files out of the work in progress."""
    stem = f"{SAMPLES_FOLDER}/{id}"
    frames, audio, keep_mask = f"{stem}.frames.npy", None, None
    fitted.frames.replace(out / frames)
    if fitted.sound is not None:
        audio = Audio(path=f"{stem}.audio.npy", sample_rate=fitted.sound.audio.sample_rate)
        fitted.sound.file.replace(out / audio.path)
    if fitted.mask is not None:
        keep_mask = f"{stem}.keep_mask.npy"
        fitted.mask.file.replace(out / keep_mask)
    return Sample(
        id=id,
        frames=frames,
        audio=audio,
        keep_mask=keep_mask,
        caption=record.caption.as_trained,
        frame_rate=fitted.video.frame_rate,
        source=record.name,
    )


def _advice(ledger: Ledger, rule: DatasetRule) -> list[str]:
    """What is allowed but seldom meant."""
    advice = []
    used = ledger.used()
    if len(used) < ADVISED_CLIPS:
        files = "1 file is" if len(used) == 1 else f"{len(used)} files are"
        advice.append(f"{files} used; {ADVISED_CLIPS} or more are advised")
    if not any(record.caption.as_trained for record in used):
        advice.append("there is neither a caption nor a trigger phrase to call the concept by")
    rates = sorted({fitted.video.frame_rate for record in used for fitted in record.fitted})
    is_video = any(record.kind == "video" for record in used)
    if is_video and not rule.auto_scale and rates != [rule.frame_rate]:
        found = ", ".join(str(rate) for rate in rates)
        advice.append(
            f"the clips play at {found} frames per second and train at that, not at "
            f"{rule.frame_rate}; auto_scale_input would bring them there"
        )
    return advice
