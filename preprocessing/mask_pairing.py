"""Which mask belongs to which clip, and which names must not come twice."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from preprocessing.errors import DatasetRuleError
from preprocessing.names import listed, shown, suffix, without_suffix
from preprocessing.rules import MASK_IMAGE_EXTENSIONS, MASK_SUFFIX, DatasetRule
from preprocessing.source import Member

_NAMED = 20
"""Files of one kind of trouble that a message names; its ``ctx`` has all."""


def stem(member: Member, rule: DatasetRule) -> str:
    """What files that belong together share: folder and base name, or, where names are unique in
    the whole archive, the base name alone."""
    name = without_suffix(member.key)
    return name.rpartition("/")[2] if rule.unique_names else name


def is_mask(member: Member, rule: DatasetRule) -> bool:
    """``<name>_mask`` with the extension of a mask, in a training that takes masks."""
    extensions = (*MASK_IMAGE_EXTENSIONS, *rule.video_extensions)
    return (
        rule.masks
        and suffix(member.name) in extensions
        and without_suffix(member.key).endswith(MASK_SUFFIX)
    )


def masks_of(
    clips: Sequence[Member], masks: Sequence[Member], rule: DatasetRule
) -> dict[int, Member]:
    """The mask of each clip, by the clip's index.

    Raises one `DatasetRuleError` for all clips without a mask, clips with several, and masks
    without a clip.
    """
    by_stem: dict[str, list[Member]] = defaultdict(list)
    for mask in masks:
        by_stem[stem(mask, rule).removesuffix(MASK_SUFFIX)].append(mask)
    stems = {stem(clip, rule) for clip in clips}
    without = [clip for clip in clips if stem(clip, rule) not in by_stem]
    orphans = [mask for key, found in by_stem.items() if key not in stems for mask in found]
    several = [
        mask for key, found in by_stem.items() if key in stems and len(found) > 1 for mask in found
    ]
    _refuse(
        (
            "clips_without_mask",
            without,
            f"These clips have no mask: {{}}. Every clip needs one, called <name>{MASK_SUFFIX} "
            f"({', '.join(MASK_IMAGE_EXTENSIONS)} or a video) for a clip called <name>.",
        ),
        (
            "masks_without_clip",
            orphans,
            "These masks have no clip: {}. A mask is called as its clip with "
            f"{MASK_SUFFIX} at the end.",
        ),
        ("masks_of_one_clip", several, "There are several masks for one clip: {}. Keep one."),
    )
    return {clip.index: by_stem[stem(clip, rule)][0] for clip in clips}


def refuse_repeated_names(
    clips: Sequence[Member], captions: Sequence[Member], rule: DatasetRule
) -> None:
    """Refuse two clips, or two captions, of one base name anywhere in the archive."""
    _refuse(
        (
            "repeated_names",
            [*_repeated(clips, rule), *_repeated(captions, rule)],
            "These names come more than once: {}. Names must be unique in the whole archive, in "
            "subfolders too.",
        )
    )


def _repeated(members: Sequence[Member], rule: DatasetRule) -> Iterable[Member]:
    times = Counter(stem(member, rule) for member in members)
    return (member for member in members if times[stem(member, rule)] > 1)


def _refuse(*troubles: tuple[str, Sequence[Member], str]) -> None:
    """Raise for all troubles that have members: (key in ``ctx``, members, sentence with {})."""
    found = [trouble for trouble in troubles if trouble[1]]
    if not found:
        return
    names = {key: [member.name for member in members] for key, members, _ in found}
    raise DatasetRuleError(
        " ".join(sentence.format(listed(names[key], _NAMED)) for key, _, sentence in found),
        ctx={key: [shown(name) for name in given] for key, given in names.items()},
    )
