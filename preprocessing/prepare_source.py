"""The clip that a generation starts from: placed in its canvas, with mask and sound.

DIR/source.json          `preprocessing.manifest.SourceManifest`
DIR/source.frames.npy    uint8 [F, h, w, 3], of the source's rectangle in the canvas
DIR/source.keep_mask.npy bool [k + 1, rows, columns], where a mask comes with the clip
DIR/source.audio.npy     float32 [2, S], where sound is asked for and the clip has some
DIR/problem.json         why the clip was refused, in place of source.json
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final, TypeVar

from preprocessing.errors import DatasetError, DatasetRuleError, MediaError
from preprocessing.events import EventLog
from preprocessing.manifest import SOURCE_FILE, Audio, Placement, SourceManifest
from preprocessing.media import (
    Clip,
    FittedAudio,
    FittedMask,
    FittedVideo,
    fit_audio,
    fit_mask,
    fit_source,
    probe_video,
)
from preprocessing.names import short
from preprocessing.placement import cut_share, place
from preprocessing.pool import Pool
from preprocessing.report import PROBLEM_FILE, Problem, Refusal
from preprocessing.rules import LATENT_STRIDE_FRAMES, SourceRule

VIDEO_FIELD: Final = "video_url"
MASK_FIELD: Final = "mask_url"

FRAMES: Final = "source.frames.npy"
MASK: Final = "source.keep_mask.npy"
SOUND: Final = "source.audio.npy"

_WORTH_SAYING: Final = Fraction(1, 50)
"""Of the source: a smaller cut nobody sees."""

T = TypeVar("T")


@dataclass(frozen=True)
class _AsItIs:
    """Given sound keeps its level: it is heard beside the user's own."""

    audio_normalize: bool = False
    audio_preserve_pitch: bool = True


def prepare_source(
    video: Path,
    mask: Path | None,
    rule: SourceRule,
    out: Path,
    events: EventLog,
    *,
    names: tuple[str, str] = (VIDEO_FIELD, MASK_FIELD),
) -> SourceManifest:
    """Fit a clip as ``rule`` asks and write the layout above. ``names`` are the video's and the
    mask's, for messages.

    Raises `DatasetError` for a clip or mask that can't be used; its ``field`` is ``video_url``,
    ``mask_url``, ``source_scale`` or ``resolution``. ``problem.json`` is then written. What an
    earlier run left is removed first.

    The media work is done in a child process, so scripts need ``if __name__ == "__main__":``.
    """
    _clear(out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with Pool(1, out, _given(video, mask)) as pool, events.stage("source"):
            manifest = _Preparation(video, mask, rule, out, names, pool).run()
    except DatasetError as error:
        _clear(out)
        Refusal(problem=Problem.of(error)).save(out)
        events.log(error.message, level="ERROR")
        raise
    except BaseException:
        _clear(out)
        raise
    for note in manifest.notes:
        events.log(note)
    manifest.save(out)
    return manifest


def _given(*files: Path | None) -> list[Path]:
    return [path for path in files if path is not None]


def _clear(out: Path) -> None:
    for file in (SOURCE_FILE, PROBLEM_FILE, FRAMES, MASK, SOUND):
        (out / file).unlink(missing_ok=True)


class _Preparation:
    """One run: probe, place, fit; then the mask and the sound."""

    def __init__(
        self,
        video: Path,
        mask: Path | None,
        rule: SourceRule,
        out: Path,
        names: tuple[str, str],
        pool: Pool,
    ) -> None:
        self._video, self._mask = video, mask
        self._rule, self._out = rule, out
        self._video_name, self._mask_name = names
        self._pool = pool

    def run(self) -> SourceManifest:
        rule = self._rule
        clip: Clip = self._in_child(_probe, self._video_name, self._video)
        placement, notes = self._placed(clip)
        frames = self._out / FRAMES
        fitted = self._in_child(_fit, self._video_name, clip, rule, placement, frames)
        notes += [f"{short(clip.name)}: {warning}." for warning in fitted.warnings]
        if fitted.num_frames < rule.num_frames:
            notes.append(
                f"{short(clip.name)} ends after {fitted.num_frames} frames at "
                f"{float(rule.frame_rate):g} per second, so the video has {fitted.num_frames} "
                f"frames, not {rule.num_frames}."
            )
        if rule.masks:
            notes += self._add_mask(clip, fitted)
        audio = None
        if rule.with_audio and clip.facts.audio is None:
            notes.append(f"{short(clip.name)} has no sound, so all sound is generated.")
        elif rule.with_audio:
            sound = self._in_child(_fit_sound, self._video_name, clip, fitted, self._out / SOUND)
            audio = Audio(path=SOUND, sample_rate=sound.sample_rate)
        return SourceManifest(
            frames=FRAMES,
            audio=audio,
            keep_mask=MASK if rule.masks else None,
            width=rule.width,
            height=rule.height,
            placement=placement,
            num_frames=fitted.num_frames,
            frame_rate=fitted.frame_rate,
            notes=tuple(notes),
        )

    def _placed(self, clip: Clip) -> tuple[Placement, list[str]]:
        """Where the clip's frames go, and what of that its user should know."""
        rule = self._rule
        shape = Fraction(clip.facts.width, clip.facts.height)
        if rule.source_scale is None:
            placement = Placement(left=0, top=0, width=rule.width, height=rule.height)
        else:
            size = Fraction(clip.facts.width), Fraction(clip.facts.height)
            placement = place(size, (rule.width, rule.height), rule.source_scale)
        notes = [
            f"{short(clip.name)} ({clip.facts.width}x{clip.facts.height}) lies at "
            f"{placement.width}x{placement.height} pixels in the canvas of {rule.width}x"
            f"{rule.height}, {placement.left} from the left and {placement.top} from the top."
        ]
        cut = cut_share(shape, (placement.width, placement.height))
        if cut > _WORTH_SAYING:
            notes.append(f"To fit there, {float(100 * cut):.0f} % of it is cut at two sides.")
        return placement, notes

    def _add_mask(self, clip: Clip, fitted: FittedVideo) -> list[str]:
        if self._mask is None:
            raise DatasetRuleError(
                f"{self._mask_name} is missing: white says what of the clip is to be regenerated.",
                type="missing",
                field=MASK_FIELD,
            )
        held = -(fitted.num_frames - 1) % LATENT_STRIDE_FRAMES
        whole = replace(
            fitted,
            num_frames=fitted.num_frames + held,
            source_times=fitted.source_times + fitted.source_times[-1:] * held,
        )
        made: FittedMask = self._in_child(
            _fit_mask, self._mask_name, self._mask, clip, whole, self._out / MASK, field=MASK_FIELD
        )
        return [f"{made.description}.", *(f"{warning}." for warning in made.warnings)]

    def _in_child(
        self, function: Callable[..., T], name: str, *task: object, field: str = VIDEO_FIELD
    ) -> T:
        """Call ``function(name, *task)`` where a crash ends a child only; raise what it found."""
        ((_, answer),) = self._pool.run(function, [(name, *task)])
        if isinstance(answer, MediaError):
            answer.field = field
            raise answer
        return answer


# What the child process runs; the name comes first, for `Pool`.


def _probe(name: str, video: Path) -> Clip:
    return probe_video(video, name)


def _fit(_name: str, clip: Clip, rule: SourceRule, size: Placement, out: Path) -> FittedVideo:
    return fit_source(clip, rule, size, out)


def _fit_mask(name: str, mask: Path, clip: Clip, fitted: FittedVideo, out: Path) -> FittedMask:
    return fit_mask(mask, name, clip, fitted, out, pad=True)


def _fit_sound(_name: str, clip: Clip, fitted: FittedVideo, out: Path) -> FittedAudio:
    return fit_audio(clip, fitted, _AsItIs(), out)
