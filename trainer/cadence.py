"""How often a training saves a checkpoint, and how often it stops for previews.

Checkpoints come so often that a lost machine costs little work (`reliability.md` R1). Previews
must not cost more than a share of the training: of the default size, they can take longer than all
steps together (`ltx-training.md` 5.5). So some of the points that the spec names are passed over;
the last one never is.
"""

from dataclasses import dataclass
from typing import Final

ALWAYS_GRANTED_S: Final = 120.0
"""So much previewing nobody minds, however short the training."""
_FORWARD_SHARE: Final = 0.43
"""Of a training step; a guess for the first preview's price, until one was made."""


@dataclass
class CheckpointPace:
    """When the next checkpoint is due: ``every`` so many steps, and where ``every_s`` is given, so
    many seconds after the one before, whichever comes first. A point that was missed, because one
    was still being written, is made up for."""

    every: int
    every_s: float | None
    step: int
    """Of the newest one, or where the training begins."""
    at: float
    """When that was, by a clock that does not jump."""

    def is_due(self, step: int, now: float) -> bool:
        """
        >>> pace = CheckpointPace(every=250, every_s=45.0, step=240, at=1000.0)
        >>> pace.is_due(249, 1009.0), pace.is_due(251, 1009.0), pace.is_due(249, 1045.0)
        (False, True, True)
        """
        by_steps = step // self.every > self.step // self.every
        return by_steps or (self.every_s is not None and now - self.at >= self.every_s)

    def saved(self, step: int, now: float) -> None:
        self.step, self.at = step, now


@dataclass
class PreviewBudget:
    """What previews have cost so far, and what they may. ``share`` is of the time that all steps of
    the training take; None: no limit."""

    share: float | None
    spent_s: float = 0.0
    asked_s: float = 0.0
    """Of it, for rounds that somebody asked for: they take nothing from the others."""
    last_s: float | None = None
    """Of the newest round: the next one's expected price."""

    def allows(self, *, first_guess_s: float, training_s: float) -> bool:
        """Whether another round now leaves enough for the last one.

        ``training_s`` is what all steps will have taken, by the pace so far; ``first_guess_s`` a
        round's price as long as none was made.
        """
        if self.share is None:
            return True
        price = first_guess_s if self.last_s is None else self.last_s
        scheduled_s = self.spent_s - self.asked_s
        return scheduled_s + 2 * price <= max(ALWAYS_GRANTED_S, self.share * training_s)

    def paid(self, seconds: float, *, asked: bool = False) -> None:
        self.spent_s += seconds
        self.asked_s += seconds if asked else 0.0
        self.last_s = seconds


def guess_round_s(
    *, step_s: float, step_tokens: int, tokens: int, num_prompts: int, num_steps: int, passes: int
) -> float:
    """What one round of previews should take, from the time of a training step.

    >>> round(guess_round_s(step_s=1.0, step_tokens=6912, tokens=10800, num_prompts=1,
    ...                     num_steps=30, passes=3))
    60
    """
    forward_s = step_s * _FORWARD_SHARE * tokens / step_tokens
    return forward_s * num_prompts * num_steps * passes
