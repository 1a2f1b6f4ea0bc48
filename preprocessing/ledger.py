"""What is known of every clip while it is prepared, and the report made of it at the end."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from preprocessing.captions import as_trained, check_size, decode_caption
from preprocessing.errors import DatasetError, DatasetRuleError
from preprocessing.media import Clip, FittedAudio, FittedMask, FittedVideo
from preprocessing.names import shown
from preprocessing.pairing import Pair
from preprocessing.report import (
    ArchiveFacts,
    AudioDecision,
    Became,
    Caption,
    ClipReport,
    DatasetReport,
    Dropped,
    Ignored,
    Problem,
    Totals,
    VideoFacts,
)
from preprocessing.rules import DatasetRule
from preprocessing.source import Source

_NOT_REACHED = Dropped(
    reason="dataset_refused", message="nothing is wrong with this clip; the dataset was refused"
)
_NAMED_IN_MESSAGE = 5
"""Files whose troubles are spelled out in one error message; the report has all."""


@dataclass(frozen=True)
class Sound:
    audio: FittedAudio
    file: Path


@dataclass(frozen=True)
class Mask:
    fitted: FittedMask
    file: Path


@dataclass
class Fitted:
    """One sample on disk, under a name of the work in progress."""

    video: FittedVideo
    frames: Path
    clip: Clip | None = None
    """What it was cut from; None for a still image."""
    sound: Sound | None = None
    mask: Mask | None = None


@dataclass
class Record:
    """One clip on its way."""

    pair: Pair
    kind: Literal["video", "image"]
    caption: Caption
    facts: VideoFacts | None = None
    fitted: list[Fitted] = field(default_factory=list)
    dropped: Dropped | None = None
    short: Dropped | None = None
    """Why a part of it was left out; the reason to drop it when nothing else is left."""
    error: DatasetError | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return shown(self.pair.clip.name)

    def note(self, warnings: Sequence[str]) -> None:
        """Add warnings once: the scenes of one clip share most of theirs."""
        self.warnings += [text for text in warnings if text not in self.warnings]

    def fail(self, error: DatasetError, reason: str) -> None:
        """Keep the first error; it refuses the dataset once all clips were looked at."""
        self.error = self.error or error
        self.dropped = self.dropped or Dropped(reason=reason, message=error.message)

    def report(self, samples: Sequence[Became], *, refused: bool) -> ClipReport:
        dropped = self.dropped or (_NOT_REACHED if refused else None)
        return ClipReport(
            name=self.name,
            size_bytes=self.pair.clip.size_bytes,
            kind=self.kind,
            facts=self.facts,
            caption=self.caption,
            became=() if dropped else tuple(samples),
            dropped=dropped,
            warnings=tuple(self.warnings),
        )


def read_record(
    source: Source, pair: Pair, kind: Literal["video", "image"], trigger: str
) -> Record:
    """A record with its caption; a caption that can't be used is noted as the record's error."""
    if pair.caption is None:
        empty = Caption(file=None, text="", as_trained=as_trained("", trigger))
        return Record(pair, kind, empty)
    file = shown(pair.caption.name)
    try:
        check_size(pair.caption.name, pair.caption.size_bytes)
        caption = decode_caption(pair.caption.name, source.read(pair.caption))
    except DatasetRuleError as error:
        record = Record(pair, kind, Caption(file=file, text="", as_trained=""))
        record.fail(error, "bad_caption")
        return record
    text = Caption(file=file, text=caption.text, as_trained=as_trained(caption.text, trigger))
    return Record(pair, kind, text, warnings=list(caption.warnings))


def became(sample: str, fitted: Fitted) -> Became:
    video = fitted.video
    return Became(
        sample=sample,
        start_s=video.start_s,
        end_s=video.end_s,
        num_source_frames=video.num_source_frames,
        num_frames=video.num_frames,
        frame_rate=video.frame_rate,
        width=video.width,
        height=video.height,
        scaled_width=video.scaled_width,
        scaled_height=video.scaled_height,
        time_scale=video.time_scale,
        audio=fitted.sound.audio.description if fitted.sound else None,
        mask=fitted.mask.fitted.description if fitted.mask else None,
    )


class Ledger:
    """Everything the report says, gathered on the way so that a refusal can be reported too."""

    def __init__(self, rule: DatasetRule) -> None:
        self.rule = rule
        self.archive = ArchiveFacts(size_bytes=0, sha256="", num_entries=0)
        self.records: list[Record] = []
        self.ignored: tuple[Ignored, ...] = ()
        self.audio: AudioDecision | None = None
        self.warnings: list[str] = []

    def used(self) -> list[Record]:
        return [record for record in self.records if record.fitted and record.dropped is None]

    def refuse_bad_clips(self) -> None:
        """Raise for all clips that failed, at once: their user mends them in one go.

        A broken clip is not dropped in silence as a short one is: a paid training that misses
        clips nobody was told about is worth less than an early 422.
        """
        errors = [record.error for record in self.records if record.error is not None]
        if not errors:
            return
        supported = {
            "unsupported_video_format": self.rule.video_extensions,
            "unsupported_image_format": self.rule.image_extensions,
        }
        for error in errors:
            if error.type in supported:
                error.ctx.setdefault("supported_formats", list(supported[error.type]))
        if len(errors) == 1:
            raise errors[0]
        more = len(errors) - _NAMED_IN_MESSAGE
        raise DatasetRuleError(
            f"{len(errors)} of {len(self.records)} files can't be used. "
            + " ".join(error.message for error in errors[:_NAMED_IN_MESSAGE])
            + (f" {more} more are in the dataset report." if more > 0 else ""),
            type=errors[0].type if len({error.type for error in errors}) == 1 else None,
            ctx={"files": [record.name for record in self.records if record.error is not None]}
            | errors[0].ctx,
        )

    def report(
        self, samples: Sequence[Sequence[Became]] = (), problem: DatasetError | None = None
    ) -> DatasetReport:
        """The report so far. ``samples``: what became of each record, in order; none if refused."""
        padded = samples if problem is None else [()] * len(self.records)
        clips = tuple(
            record.report(made, refused=problem is not None)
            for record, made in zip(self.records, padded, strict=True)
        )
        used = sum(1 for clip in clips if clip.dropped is None)
        return DatasetReport(
            verdict="ok" if problem is None else "refused",
            problem=None if problem is None else Problem.of(problem),
            archive=self.archive,
            settings=self.rule.model_dump(mode="json"),
            totals=Totals(
                clips=len(clips),
                used=used,
                dropped=len(clips) - used,
                samples=sum(len(clip.became) for clip in clips),
            ),
            audio=self.audio,
            clips=clips,
            ignored=self.ignored,
            warnings=tuple(self.warnings),
        )
