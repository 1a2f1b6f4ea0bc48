"""The clips that previews start from: fitted to the validation size, with mask and sound.

DIR/validation.json              `preprocessing.manifest.ValidationManifest`
DIR/clips/0.frames.npy           uint8 [8k + 1, H, W, 3]; the number is the entry's
DIR/clips/0.keep_mask.npy        bool [k + 1, h, w], where the training takes masks
DIR/clips/0.audio.npy            float32 [2, S], where sound is trained
DIR/problem.json                 why an entry was refused, in place of validation.json
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict

from preprocessing.errors import DatasetError, DatasetRuleError, MediaError
from preprocessing.events import EventLog
from preprocessing.manifest import VALIDATION_FILE, Audio, ValidationClip, ValidationManifest
from preprocessing.masks import fit_mask_of
from preprocessing.media import (
    Clip,
    FittedAudio,
    FittedVideo,
    as_dataset_rule,
    fit_audio,
    fit_excerpt,
    probe_video,
)
from preprocessing.pool import Pool, Task
from preprocessing.report import PROBLEM_FILE, Problem, Refusal
from preprocessing.rules import ValidationRule

CLIPS_FOLDER: Final = "clips"

T = TypeVar("T")


class ValidationSource(BaseModel):
    """The files of one validation entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    video: Path
    mask: Path | None = None


class ValidationJob(BaseModel):
    """What ``python -m preprocessing validation --spec`` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: ValidationRule
    clips: tuple[ValidationSource, ...]


def prepare_validation(
    clips: Sequence[ValidationSource],
    rule: ValidationRule,
    out: Path,
    events: EventLog,
    *,
    processes: int = 1,
) -> ValidationManifest:
    """Fit the clips of all validation entries, in their order, and write the layout above.

    Raises `DatasetError` for the first entry that can't be used: its ``field`` is
    ``validation.0.video_url`` or ``validation.0.mask_url`` (0 is the entry's number), its message
    says ``validation[0].video_url``. ``problem.json`` is then written, and no clip is left.
    What an earlier run left is removed first.

    The media work is done in child processes, so scripts need ``if __name__ == "__main__":``.
    """
    _clear(out)
    (out / CLIPS_FOLDER).mkdir(parents=True)
    try:
        with Pool(processes, out, _files_of(clips)) as pool, events.stage("validation"):
            manifest = _Preparation(clips, rule, out, pool).run()
    except DatasetError as error:
        _clear(out)
        Refusal(problem=Problem.of(error)).save(out)
        events.log(error.message, level="ERROR")
        raise
    except BaseException:
        _clear(out)
        raise
    manifest.save(out)
    return manifest


def _files_of(clips: Sequence[ValidationSource]) -> list[Path]:
    return [path for one in clips for path in (one.video, one.mask) if path is not None]


def _clear(out: Path) -> None:
    for file in (VALIDATION_FILE, PROBLEM_FILE):
        (out / file).unlink(missing_ok=True)
    if (out / CLIPS_FOLDER).exists():
        shutil.rmtree(out / CLIPS_FOLDER)


class _Preparation:
    """One run: probe and fit all videos, then all masks, then all sound."""

    def __init__(
        self, clips: Sequence[ValidationSource], rule: ValidationRule, out: Path, pool: Pool
    ) -> None:
        self._clips = clips
        self._rule = rule
        self._out = out
        self._pool = pool

    def run(self) -> ValidationManifest:
        entries = range(len(self._clips))
        files = [f"{CLIPS_FOLDER}/{entry}" for entry in entries]
        probed = self._each("video_url", _probe, [(one.video,) for one in self._clips])
        if self._rule.with_audio:
            for entry, clip in enumerate(probed):
                _require_sound(entry, clip)
        fitted = self._each(
            "video_url",
            _fit,
            [(probed[e], self._rule, self._out / f"{files[e]}.frames.npy") for e in entries],
        )
        if self._rule.masks:
            tasks: list[Task] = []
            for e, source in enumerate(self._clips):
                mask, out = _given(e, source.mask), self._out / f"{files[e]}.keep_mask.npy"
                tasks.append((mask, probed[e], fitted[e], out))
            self._each("mask_url", fit_mask_of, tasks)
        sounds: list[FittedAudio] = []
        if self._rule.with_audio:
            sounds = self._each(
                "video_url",
                _fit_sound,
                [
                    (probed[e], fitted[e], self._rule, self._out / f"{files[e]}.audio.npy")
                    for e in entries
                ],
            )
        return ValidationManifest(
            clips=tuple(
                ValidationClip(
                    frames=f"{files[e]}.frames.npy",
                    audio=Audio(path=f"{files[e]}.audio.npy", sample_rate=sounds[e].sample_rate)
                    if sounds
                    else None,
                    keep_mask=f"{files[e]}.keep_mask.npy" if self._rule.masks else None,
                    num_frames=fitted[e].num_frames,
                    frame_rate=fitted[e].frame_rate,
                )
                for e in entries
            )
        )

    def _each(self, field: str, function: Callable[..., T], tasks: Sequence[Task]) -> list[T]:
        """Call ``function(name, *task)`` for each entry; raise for the first that has an error."""
        named = [(_called(entry, field), *task) for entry, task in enumerate(tasks)]
        answers = dict(self._pool.run(function, named))
        results = []
        for entry in range(len(tasks)):
            answer = answers[entry]
            if isinstance(answer, MediaError):
                answer.field = _field(entry, field)
                raise answer
            results.append(answer)
        return results


def _field(entry: int, name: str) -> str:
    return f"validation.{entry}.{name}"


def _called(entry: int, name: str) -> str:
    """How messages call an entry's file; it has no other name that its user knows."""
    return f"validation[{entry}].{name}"


def _given(entry: int, mask: Path | None) -> Path:
    if mask is None:
        raise DatasetRuleError(
            f"{_called(entry, 'mask_url')} is missing: every validation clip needs a mask.",
            type="missing",
            field=_field(entry, "mask_url"),
        )
    return mask


def _require_sound(entry: int, clip: Clip) -> None:
    if clip.facts.audio is None:
        raise DatasetRuleError(
            f"{clip.name} has no sound that can be decoded, and with_audio is true. Send a clip "
            "with an audio track, or turn with_audio off.",
            field=_field(entry, "video_url"),
        )


# What the child processes run; the name comes first, for `Pool`.


def _probe(name: str, video: Path) -> Clip:
    return probe_video(video, name)


def _fit(_name: str, clip: Clip, rule: ValidationRule, out: Path) -> FittedVideo:
    return fit_excerpt(clip, rule, out)


def _fit_sound(
    _name: str, clip: Clip, fitted: FittedVideo, rule: ValidationRule, out: Path
) -> FittedAudio:
    return fit_audio(clip, fitted, as_dataset_rule(rule, fitted.num_frames), out)
