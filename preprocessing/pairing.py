"""Which files of a source are clips, which are captions or masks of which clip; the rest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from preprocessing.errors import DatasetRuleError
from preprocessing.mask_pairing import is_mask, masks_of, refuse_repeated_names, stem
from preprocessing.names import is_system_file, short, shown, suffix
from preprocessing.report import Ignored
from preprocessing.rules import IMAGE_EXTENSIONS, DatasetRule
from preprocessing.source import Member

CAPTION_EXTENSION: Final = ".txt"
_ARCHIVE_EXTENSIONS: Final = frozenset(
    {".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".bz2", ".xz"}
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A clip, its caption file, if it has one, and its mask, where the training takes masks."""

    clip: Member
    caption: Member | None
    mask: Member | None = None


@dataclass(frozen=True)
class Pairing:
    kind: Literal["video", "image"]
    pairs: tuple[Pair, ...]
    """In the source's order. Never empty."""
    ignored: tuple[Ignored, ...]


def pair(members: Sequence[Member], rule: DatasetRule) -> Pairing:
    """Match captions and masks to clips by base name.

    Within one folder, or over all of them where names are unique. Case and Unicode form of a name
    do not matter. Two clips of one base name (``a.mp4``, ``a.mov``) share its caption. Raises
    `DatasetRuleError` for an archive that mixes videos and images, has images where the training
    takes none, has no clip at all, or repeats a name or lacks a mask where it must not.
    """
    ignored: list[Ignored] = []
    candidates: list[Member] = []
    for member in members:
        if is_system_file(member.name):
            ignored.append(Ignored(name=shown(member.name), reason="hidden or system file"))
        else:
            candidates.append(member)
    masks = [m for m in candidates if is_mask(m, rule)]
    media = [m for m in candidates if not is_mask(m, rule)]
    videos = [m for m in media if suffix(m.name) in rule.video_extensions]
    images = [m for m in media if suffix(m.name) in rule.image_extensions]
    if rule.masks or not rule.image_extensions:
        _refuse_images(media, rule)
    if videos and images:
        raise DatasetRuleError(
            f"The archive mixes videos and images ({short(videos[0].name)}, "
            f"{short(images[0].name)}). Send only videos or only images.",
            ctx={"video": shown(videos[0].name), "image": shown(images[0].name)},
        )
    clips = videos or images
    if not clips:
        raise _no_clips(candidates, rule)
    texts = [m for m in candidates if suffix(m.name) == CAPTION_EXTENSION]
    if rule.unique_names:
        refuse_repeated_names(clips, texts, rule)
    captions = {stem(text, rule): text for text in texts}
    mask_of = masks_of(clips, masks, rule) if rule.masks else {}
    pairs = tuple(
        Pair(clip, captions.get(stem(clip, rule)), mask_of.get(clip.index)) for clip in clips
    )
    used = {m.index for p in pairs for m in (p.clip, p.caption, p.mask) if m is not None}
    ignored += [
        Ignored(name=shown(m.name), reason=_why_ignored(m))
        for m in candidates
        if m.index not in used
    ]
    return Pairing("video" if videos else "image", pairs, tuple(ignored))


def _refuse_images(media: Sequence[Member], rule: DatasetRule) -> None:
    advice = "Call a mask <name of the clip>_mask." if rule.masks else "Leave the images out."
    for member in media:
        if suffix(member.name) in IMAGE_EXTENSIONS:
            raise DatasetRuleError(
                f"{short(member.name)} is an image, and this training takes videos only. " + advice,
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
