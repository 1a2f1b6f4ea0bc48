"""Which files of a source are clips, which are captions of which clip, and which are neither."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from preprocessing.errors import DatasetRuleError
from preprocessing.names import is_system_file, short, shown, suffix, without_suffix
from preprocessing.report import Ignored
from preprocessing.rules import IMAGE_EXTENSIONS, DatasetRule
from preprocessing.source import Member

CAPTION_EXTENSION: Final = ".txt"
_ARCHIVE_EXTENSIONS: Final = frozenset(
    {".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz"}
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip and its caption file, if it has one."""

    clip: Member
    caption: Member | None


@dataclass(frozen=True)
class Pairing:
    kind: Literal["video", "image"]
    pairs: tuple[Pair, ...]
    """In the source's order. Never empty."""
    ignored: tuple[Ignored, ...]


def pair(members: Sequence[Member], rule: DatasetRule) -> Pairing:
    """Match captions to clips by base name within the same folder.

    Case and Unicode form of a name do not matter. Two clips of one base name (``a.mp4``,
    ``a.mov``) share its caption. Raises `DatasetRuleError` for an archive that mixes videos and
    images, has images where the training takes none, or has no clip at all.
    """
    ignored: list[Ignored] = []
    candidates: list[Member] = []
    for member in members:
        if is_system_file(member.name):
            ignored.append(Ignored(name=shown(member.name), reason="hidden or system file"))
        else:
            candidates.append(member)
    videos = [m for m in candidates if suffix(m.name) in rule.video_extensions]
    images = [m for m in candidates if suffix(m.name) in rule.image_extensions]
    if videos and images:
        raise DatasetRuleError(
            f"The archive mixes videos and images ({short(videos[0].name)}, "
            f"{short(images[0].name)}). Send only videos or only images.",
            ctx={"video": shown(videos[0].name), "image": shown(images[0].name)},
        )
    if not rule.image_extensions:
        _refuse_images(candidates)
    clips = videos or images
    if not clips:
        raise _no_clips(candidates, rule)
    captions = {without_suffix(m.key): m for m in candidates if suffix(m.name) == CAPTION_EXTENSION}
    pairs = tuple(Pair(clip, captions.get(without_suffix(clip.key))) for clip in clips)
    used = {m.index for p in pairs for m in (p.clip, p.caption) if m is not None}
    ignored += [
        Ignored(name=shown(m.name), reason=_why_ignored(m))
        for m in candidates
        if m.index not in used
    ]
    return Pairing("video" if videos else "image", pairs, tuple(ignored))


def _refuse_images(candidates: Sequence[Member]) -> None:
    for member in candidates:
        if suffix(member.name) in IMAGE_EXTENSIONS:
            raise DatasetRuleError(
                f"{short(member.name)} is an image, and this training takes videos only. "
                "Leave the images out.",
                ctx={"image": shown(member.name)},
            )


def _no_clips(candidates: Sequence[Member], rule: DatasetRule) -> DatasetRuleError:
    supported = [*rule.video_extensions, *rule.image_extensions]
    nested = any(suffix(m.name) in _ARCHIVE_EXTENSIONS for m in candidates)
    advice = " Archives inside the archive are not opened." if nested else ""
    return DatasetRuleError(
        f"The archive has no usable media: none of its files is one of {', '.join(supported)}."
        + advice,
        type="archive_file_count_below_minimum",
        ctx={"min_count": 1, "provided_count": 0, "supported_extensions": supported},
    )


def _why_ignored(member: Member) -> str:
    extension = suffix(member.name)
    if extension == CAPTION_EXTENSION:
        return "a caption without a clip: no clip in this folder has its base name"
    if extension in _ARCHIVE_EXTENSIONS:
        return "an archive inside the archive is not opened"
    return f"not a kind of file this training uses ({extension or 'no extension'})"
