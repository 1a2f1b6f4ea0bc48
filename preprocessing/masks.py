"""The stage that fits each sample's mask, where clips bring one."""

from pathlib import Path

from preprocessing.errors import MediaError
from preprocessing.ledger import Mask
from preprocessing.media import Clip, FittedMask, FittedVideo, fit_mask
from preprocessing.names import shown
from preprocessing.pool import Task
from preprocessing.stages import Run, Unpacked


def add_masks(unpacked: Unpacked, run: Run) -> None:
    """Fit the masks of all samples; refuse the dataset for all that can't be used, at once.

    Only clips that are used are looked at: the mask of one that was too short has no say.
    """
    if not run.rule.masks:
        return
    todo = [
        (record, mask, fitted)
        for record, mask in zip(run.ledger.records, unpacked.masks, strict=True)
        if record.dropped is None
        for fitted in record.fitted
    ]
    outs = [one.frames.with_name(one.frames.stem + ".keep_mask.npy") for _, _, one in todo]
    tasks: list[Task] = []
    for (record, mask, one), out in zip(todo, outs, strict=True):
        assert record.pair.mask is not None, "pairing made sure"
        tasks.append((shown(record.pair.mask.name), mask, one.clip, one.video, out))
    with run.events.stage("masks"):
        for task, answer in run.each("masks", fit_mask_of, tasks):
            record, _, one = todo[task]
            if isinstance(answer, MediaError):
                record.fail(answer, answer.reason)
            else:
                one.mask = Mask(answer, outs[task])
                record.note(answer.warnings)
        run.ledger.refuse_bad_clips()


def fit_mask_of(name: str, mask: Path, clip: Clip, fitted: FittedVideo, out: Path) -> FittedMask:
    """`fit_mask` with the name first, for a child process."""
    return fit_mask(mask, name, clip, fitted, out)
