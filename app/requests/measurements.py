"""What trainings of this service took: the newest finished ones of a mode, from rows and events.

The trainer says at its end what it ran on and how long a step took (event ``trained``); the rest is
how long the attempts lasted. Expired requests (`docs/retention.md`) have no events and don't count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.models import Attempt, Event, Outcome, Purpose, Request, Stage

NEWEST: Final = 20
"""Trainings that are looked at: enough for a median, recent enough for the machines of today."""


@dataclass(frozen=True)
class Measured:
    """One finished training. Seconds, tokens of one sample, bytes."""

    finished_at: float
    num_steps: int
    device: str
    video_tokens: int
    audio_tokens: int
    rank: int
    step_time_s: float
    num_previews: int
    previews_s: float
    preview_tokens: int
    peak_memory_bytes: int | None
    prepare_s: float | None
    train_s: float | None
    """Of the whole attempt; None where it took several."""
    device_memory_bytes: int | None = None
    """What the device has in all; None for a CPU."""

    @property
    def rest_s(self) -> float | None:
        """The train stage without steps and previews: dataset, model, encoding, the outputs."""
        if self.train_s is None:
            return None
        return max(0.0, self.train_s - self.num_steps * self.step_time_s - self.previews_s)


def newest(session: Session, mode: str, model: str) -> list[Measured]:
    """Finished trainings of ``mode`` with ``model``, the newest first, at most `NEWEST`."""
    rows = session.execute(
        select(Request.id, Request.finished_at, Request.input)
        .where(
            Request.result_status == 200,
            Request.purpose == Purpose.TRAIN,
            Request.mode == mode,
            # As the index has it; only what has ended has such a time.
            Request.finished_at.is_not(None),
            Request.expired_at.is_(None),
        )
        .order_by(Request.finished_at.desc())
        .limit(NEWEST)
    ).all()
    found = []
    for request_id, finished_at, input in rows:
        facts = _trained(session, request_id)
        if facts is None or facts["model"] != model or facts["step_time_s"] is None:
            continue
        found.append(
            Measured(
                finished_at=finished_at,
                num_steps=input["number_of_steps"],
                prepare_s=_seconds(session, request_id, Stage.PREPARE),
                train_s=_seconds(session, request_id, Stage.TRAIN),
                **{name: facts[name] for name in facts if name in Measured.__dataclass_fields__},
            )
        )
    return found


def _trained(session: Session, request_id: str) -> dict[str, Any] | None:
    return session.scalar(
        select(Event.data)
        .where(Event.request_id == request_id, Event.kind == "trained")
        .order_by(Event.id.desc())
        .limit(1)
    )


def _seconds(session: Session, request_id: str, stage: Stage) -> float | None:
    """Of the one attempt that did the stage; None where there were several: parts were repeated."""
    attempts: Sequence[Any] = session.execute(
        select(Attempt.started_at, Attempt.ended_at, Attempt.outcome).where(
            Attempt.request_id == request_id, Attempt.stage == stage
        )
    ).all()
    if len(attempts) != 1 or attempts[0].outcome not in (Outcome.ADVANCED, Outcome.COMPLETED):
        return None
    return float(attempts[0].ended_at - attempts[0].started_at)
