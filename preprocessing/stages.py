"""The stages of a preparation: unpack, probe, scenes, fit, audio.

Each reads and completes the records of the ledger; the media work itself runs in child processes.
A stage that finds bad clips looks at all of them before it refuses the dataset.
"""

import errno
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, TypeVar

from preprocessing.archive import ZipArchive, zip_facts
from preprocessing.errors import ArchiveError, DatasetRuleError, MediaError
from preprocessing.events import EventLog
from preprocessing.folder import FolderSource
from preprocessing.ledger import Fitted, Ledger, Sound, read_record
from preprocessing.media import (
    MIN_SOURCE_FRAMES,
    Clip,
    FittedAudio,
    FittedVideo,
    Span,
    TooShort,
    detect_scenes,
    fit_audio,
    fit_video,
    probe_and_fit_image,
    probe_video,
)
from preprocessing.names import listed, suffix
from preprocessing.pairing import pair
from preprocessing.pool import Pool, Task
from preprocessing.report import AudioDecision, Dropped
from preprocessing.rules import AudioPolicy, DatasetRule
from preprocessing.source import Member, Source

ALL_TOO_SHORT = "All training videos are too short to be trainable"
"""The sentence of fal's page, word for word: clients look for it."""

DISK_MARGIN_BYTES = 256 * 2**20
"""Bytes of disk to leave free for everybody else's logs and database."""

MIN_SOUND_S = Fraction(7, 200)
"""Seconds of a sample whose sound can be trained: the trainer's spectrum needs more than 32 ms.
Only slow motion at its own rate has less."""
MAX_SOUND_S = Fraction(121)
"""Seconds of a sample whose sound can be trained: the longest sample at one frame per second. What
is slower is a time lapse, of which hours of sound would outweigh the pictures."""

_PROGRESS_EVERY_S = 0.5
_BYTES_PER_PIXEL = 3
_AUDIO_BYTES_PER_S = 2 * 4 * 48_000
"""Stereo, float32, at the highest rate sound is kept in."""

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What all stages of one preparation share."""

    rule: DatasetRule
    work: Path
    events: EventLog
    pool: Pool
    ledger: Ledger

    def each(
        self, stage: str, function: Callable[..., T], tasks: list[Task]
    ) -> Iterator[tuple[int, T | MediaError]]:
        """`Pool.run` with progress events."""
        return self.counted(stage, self.pool.run(function, tasks), len(tasks))

    def counted(self, stage: str, items: Iterable[T], total: int) -> Iterator[T]:
        """Pass ``items`` on, with a progress event now and then, and one at the end."""
        self.events.emit("progress", name=stage, done=0, total=total)
        last = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            if done == total or time.monotonic() - last > _PROGRESS_EVERY_S:
                self.events.emit("progress", name=stage, done=done, total=total)
                last = time.monotonic()


@dataclass(frozen=True)
class Unpacked:
    kind: Literal["video", "image"]
    files: tuple[Path, ...]
    """One for each record, under a name of ours."""
    masks: tuple[Path, ...] = ()
    """One for each record, where the training takes masks."""


def unpack(archive: Path, run: Run) -> Unpacked:
    """Judge the archive, pair its files, read the captions, and write the clips to disk."""
    with run.events.stage("unpack"), _opened(archive, run.ledger) as source:
        run.ledger.archive = source.facts()
        pairing = pair(source.members, run.rule)
        run.ledger.ignored = pairing.ignored
        run.ledger.records = [
            read_record(source, one, pairing.kind, run.rule.trigger_phrase) for one in pairing.pairs
        ]
        clips = [one.clip for one in pairing.pairs]
        needed = clips + [one.mask for one in pairing.pairs if one.mask is not None]
        require_disk(run.work, source.stored_bytes(needed), "unpack the archive")
        files: list[Path] = []
        masks: list[Path] = []
        for record in run.counted("unpack", run.ledger.records, len(clips)):
            number = f"{len(files) + 1:04d}"
            try:
                files.append(_fetched(source, record.pair.clip, run.work / number))
                if record.pair.mask is not None:
                    masks.append(_fetched(source, record.pair.mask, run.work / f"{number}_mask"))
            except ArchiveError as error:
                record.fail(error, "damaged_in_archive")
                raise
    captions = sum(1 for record in run.ledger.records if record.caption.file)
    run.events.log(
        f"{len(clips)} {pairing.kind}s, {captions} with a caption, "
        f"{len(pairing.ignored)} other files ignored"
    )
    return Unpacked(pairing.kind, tuple(files), tuple(masks))


def _fetched(source: Source, member: Member, stem: Path) -> Path:
    file = stem.with_name(stem.name + suffix(member.name))
    source.fetch(member, file)
    return file


def _opened(archive: Path, ledger: Ledger) -> Source:
    if archive.is_dir():
        return FolderSource(archive)
    try:
        return ZipArchive(archive)
    except ArchiveError:
        ledger.archive = zip_facts(archive)
        raise


def fit_images(unpacked: Unpacked, run: Run) -> None:
    """One sample of one frame from every image."""
    records = run.ledger.records
    require_disk(run.work, len(records) * _frame_bytes(run.rule), "prepare the images")
    outs = [run.work / f"{number:04d}.frames.npy" for number in range(1, len(records) + 1)]
    tasks: list[Task] = [
        (record.name, file, run.rule, out)
        for record, file, out in zip(records, unpacked.files, outs, strict=True)
    ]
    with run.events.stage("fit"):
        for index, answer in run.each("fit", _fit_image, tasks):
            if isinstance(answer, MediaError):
                records[index].fail(answer, answer.reason)
            else:
                records[index].note(answer.warnings)
                records[index].fitted.append(Fitted(answer, outs[index]))
        run.ledger.refuse_bad_clips()


def fit_videos(unpacked: Unpacked, run: Run) -> None:
    """Probe all clips, split the long ones into scenes, and fit every scene that is long enough."""
    clips = _probe(unpacked, run)
    cuts = _scenes(clips, run)
    _fit(clips, cuts, run)


def _probe(unpacked: Unpacked, run: Run) -> list[Clip]:
    records = run.ledger.records
    clips: dict[int, Clip] = {}
    tasks: list[Task] = [
        (record.name, file) for record, file in zip(records, unpacked.files, strict=True)
    ]
    with run.events.stage("probe"):
        for index, answer in run.each("probe", _probe_video, tasks):
            if isinstance(answer, MediaError):
                records[index].fail(answer, answer.reason)
            else:
                records[index].facts = answer.facts
                records[index].note(answer.warnings)
                clips[index] = answer
        run.ledger.refuse_bad_clips()
    return [clips[index] for index in range(len(records))]


def _scenes(clips: list[Clip], run: Run) -> list[list[Span]]:
    """For each clip the spans to take samples from: its scenes, or all of it as one."""
    spans = [[clip.whole] for clip in clips]
    if not run.rule.split_scenes:
        return spans
    long = [
        index
        for index, clip in enumerate(clips)
        if clip.facts.duration_s > run.rule.split_threshold_s
    ]
    if not long:
        return spans
    with run.events.stage("scenes"):
        tasks: list[Task] = [(run.ledger.records[index].name, clips[index]) for index in long]
        for task, answer in run.each("scenes", _detect_scenes, tasks):
            record = run.ledger.records[long[task]]
            if isinstance(answer, MediaError):
                record.fail(answer, answer.reason)
                continue
            spans[long[task]] = answer
            run.events.log(f"{record.name}: {len(answer)} scenes")
            if len(answer) == 1:
                record.warnings.append("longer than the threshold, but no scene changes were found")
        run.ledger.refuse_bad_clips()
    return spans


def _fit(clips: list[Clip], cuts: list[list[Span]], run: Run) -> None:
    """Fit every span; a span that is too short is left out, a clip of only such ones dropped."""
    records = run.ledger.records
    takes = [(index, span) for index, spans in enumerate(cuts) for span in spans]
    outs = [
        run.work / f"{index + 1:04d}-{number:05d}.frames.npy"
        for number, (index, _) in enumerate(takes, start=1)
    ]
    require_disk(run.work, len(takes) * _sample_bytes(run.rule), "prepare the clips")
    answers: dict[int, FittedVideo | MediaError] = {}
    tasks: list[Task] = [
        (records[index].name, clips[index], span, run.rule, out)
        for (index, span), out in zip(takes, outs, strict=True)
    ]
    with run.events.stage("fit"):
        for task, answer in run.each("fit", _fit_video, tasks):
            answers[task] = answer
        for task, (index, span) in enumerate(takes):
            record, answer = records[index], answers[task]
            if isinstance(answer, TooShort):
                if len(cuts[index]) > 1:
                    record.warnings.append(
                        f"the scene from {float(span.start):.2f} s to {float(span.end):.2f} s was "
                        "left out: too short"
                    )
                record.short = record.short or Dropped(reason=answer.reason, message=answer.message)
            elif isinstance(answer, MediaError):
                record.fail(answer, answer.reason)
            else:
                record.note(answer.warnings)
                record.fitted.append(Fitted(answer, outs[task], clips[index]))
        run.ledger.refuse_bad_clips()
        _drop_short(clips, run)


def _drop_short(clips: list[Clip], run: Run) -> None:
    """Drop the clips of which nothing was long enough; refuse the dataset if that is all."""
    for record in run.ledger.records:
        if not record.fitted:
            record.dropped = record.short
    dropped = [record.name for record in run.ledger.records if record.dropped]
    if not dropped:
        return
    run.events.log(f"{len(dropped)} clips are too short: {listed(dropped)}", level="WARN")
    if len(dropped) < len(run.ledger.records):
        return
    longest = max(clips, key=lambda clip: clip.facts.num_frames).facts
    rate = longest.num_frames / longest.duration_s if longest.duration_s else run.rule.frame_rate
    if run.rule.auto_scale:
        need = min(run.rule.num_frames, MIN_SOURCE_FRAMES)
        run.ledger.warnings.append(
            "every clip, or scene of it, is a single frame, and a still is not stretched; send "
            "clips that move"
        )
    else:
        need = run.rule.num_frames
        run.ledger.warnings.append(
            f"every clip needs at least {need} frames ({need / run.rule.frame_rate:.1f} s at "
            f"{run.rule.frame_rate} frames per second); the longest here has "
            f"{longest.num_frames}. Send longer clips, ask for a smaller number_of_frames, or turn "
            "on auto_scale_input"
        )
    raise DatasetRuleError(
        ALL_TOO_SHORT,
        type="video_duration_too_short",
        ctx={
            "min_duration": round(need / rate, 3),
            "provided_duration": round(longest.duration_s, 3),
            "min_frames": need,
            "provided_frames": longest.num_frames,
        },
    )


def add_sound(run: Run) -> bool:
    """Decide about sound for the whole dataset, and fit it where it is trained.

    Only clips that are used have a say: a silent clip that was too short does not silence the rest.
    """
    used = run.ledger.used()
    silent = [r.name for r in used if r.facts is None or r.facts.audio is None]
    odd = [r.name for r in used if not all(_can_be_heard(one.video) for one in r.fitted)]
    run.ledger.audio = decision = decide_audio(run.rule.audio, silent, odd, len(used))
    run.events.log(f"audio: {decision.reason}")
    if not decision.trained:
        return False
    fitted = [(record, one) for record in used for one in record.fitted]
    outs = [one.frames.with_name(one.frames.stem + ".audio.npy") for _, one in fitted]
    tasks: list[Task] = [
        (record.name, one.clip, one.video, run.rule, out)
        for (record, one), out in zip(fitted, outs, strict=True)
    ]
    with run.events.stage("audio"):
        for task, answer in run.each("audio", _fit_audio, tasks):
            record, one = fitted[task]
            if isinstance(answer, MediaError):
                record.fail(answer, answer.reason)
            else:
                one.sound = Sound(answer, outs[task])
        run.ledger.refuse_bad_clips()
    return True


def _can_be_heard(video: FittedVideo) -> bool:
    return MIN_SOUND_S <= video.num_frames / video.frame_rate <= MAX_SOUND_S


def decide_audio(
    policy: AudioPolicy, silent: list[str], odd: list[str], num_used: int
) -> AudioDecision:
    """All or nothing (fal, `/t2v`, Audio Configuration).

    ``odd`` are clips of which a sample lasts too long or too short for its sound. Raises
    `DatasetRuleError` when sound is required and any clip that is used has none, or such a one.
    """
    if policy is AudioPolicy.OFF:
        return AudioDecision(trained=False, reason="the request turns sound off")
    if silent:
        reason = f"{len(silent)} of {num_used} clips have no sound ({listed(silent)})"
        advice = "Leave them out, give them sound, or set with_audio to false."
    elif odd:
        reason = (
            f"samples of {len(odd)} of {num_used} clips play less than {float(MIN_SOUND_S):g} or "
            f"more than {MAX_SOUND_S} seconds at their own frame rate, of which sound can't be "
            f"trained ({listed(odd)})"
        )
        advice = (
            "Turn on auto_scale_input, which brings them to frame_rate, leave them out, or set "
            "with_audio to false."
        )
    else:
        return AudioDecision(trained=True, reason="every clip has sound")
    if policy is AudioPolicy.REQUIRED:
        raise DatasetRuleError(
            f"with_audio is true, but {reason}. {advice}",
            field="with_audio",
            ctx={"silent_clips": silent} if silent else {"clips": odd},
        )
    return AudioDecision(trained=False, reason=reason)


def require_disk(folder: Path, size_bytes: int, what_for: str) -> None:
    """Raise `OSError` (ENOSPC) now rather than in an hour. It is our disk, so our fault."""
    free = shutil.disk_usage(folder).free
    if size_bytes + DISK_MARGIN_BYTES > free:
        raise OSError(
            errno.ENOSPC,
            f"not enough disk to {what_for}: {size_bytes} bytes and {DISK_MARGIN_BYTES} to spare "
            f"are needed, {free} are free",
        )


def _frame_bytes(rule: DatasetRule) -> int:
    return rule.width * rule.height * _BYTES_PER_PIXEL


def _sample_bytes(rule: DatasetRule) -> int:
    frames = rule.num_frames * _frame_bytes(rule)
    sound_s = 0 if rule.audio is AudioPolicy.OFF else rule.num_frames / rule.frame_rate
    return frames + round(sound_s * _AUDIO_BYTES_PER_S)


# What the child processes run; the name comes first, for `Pool`.


def _probe_video(name: str, file: Path) -> Clip:
    return probe_video(file, name)


def _detect_scenes(_name: str, clip: Clip) -> list[Span]:
    return detect_scenes(clip)


def _fit_video(_name: str, clip: Clip, span: Span, rule: DatasetRule, out: Path) -> FittedVideo:
    return fit_video(clip, span, rule, out)


def _fit_audio(
    _name: str, clip: Clip, fitted: FittedVideo, rule: DatasetRule, out: Path
) -> FittedAudio:
    return fit_audio(clip, fitted, rule, out)


def _fit_image(name: str, file: Path, rule: DatasetRule, out: Path) -> FittedVideo:
    return probe_and_fit_image(file, name, rule, out)
