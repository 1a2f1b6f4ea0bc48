"""What this service's work took: the newest finished requests of a mode, from rows and events.

The trainer says at its end what it ran on and how long a step took (events ``trained`` and
``generated``); the rest is how long the attempts lasted. Expired requests (`docs/retention.md`)
have no events and don't count.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.models import Attempt, Event, Outcome, Purpose, Request, Stage

NEWEST: Final = 20
"""Requests that are looked at: enough for a median, recent enough for the machines of today."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One finished request. Seconds, tokens of one sample, bytes."""

    finished_at: float
    num_steps: int
    device: str
    video_tokens: int
    audio_tokens: int
    step_time_s: float
    peak_memory_bytes: int | None
    prepare_s: float | None
    train_s: float | None
    """Of the whole attempt on the GPU; None where it took several."""
    device_memory_bytes: int | None = None
    """What the device has in all; None for a CPU."""

    def rest_without(self, other_s: float) -> float | None:
        """The GPU's stage without its steps and ``other_s``."""
        if self.train_s is None:
            return None
        return max(0.0, self.train_s - self.num_steps * self.step_time_s - other_s)


@dataclass(frozen=True, kw_only=True)
class Measured(Finished):
    """One finished training."""

    rank: int
    num_previews: int
    previews_s: float
    preview_tokens: int

    @property
    def rest_s(self) -> float | None:
        """Dataset, model, encoding, the outputs."""
        return self.rest_without(self.previews_s)


@dataclass(frozen=True, kw_only=True)
class MeasuredGeneration(Finished):
    """One finished generation."""

    num_passes: int
    """Of the model, in each step."""
    num_pixels: int
    """Of the video: width x height x frames."""
    writing_s: float
    """To decode and encode it."""

    @property
    def rest_s(self) -> float | None:
        """Source, LoRAs, model, prompt, encoding."""
        return self.rest_without(self.writing_s)


M = TypeVar("M", bound=Finished)


def newest(session: Session, mode: str, model: str) -> list[Measured]:
    """Finished trainings of ``mode`` with ``model``, the newest first, at most `NEWEST`. Machines
    differ: only those on the device of the newest, which is what there is now."""
    return _newest(session, mode, model, Measured, told_by="trained", steps="number_of_steps")


def newest_generations(session: Session, mode: str, model: str) -> list[MeasuredGeneration]:
    """Finished generations, chosen in the same way."""
    return _newest(
        session, mode, model, MeasuredGeneration, told_by="generated", steps="num_inference_steps"
    )


def _newest(
    session: Session, mode: str, model: str, measured: type[M], *, told_by: str, steps: str
) -> list[M]:
    """``told_by`` is the kind of the event with most of the fields, ``steps`` the body's field with
    their number."""
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
    found: list[M] = []
    for request_id, finished_at, input in rows:
        facts = _told(session, request_id, told_by)
        if facts is None or facts["model"] != model or facts["step_time_s"] is None:
            continue
        found.append(
            measured(
                finished_at=finished_at,
                num_steps=input[steps],
                prepare_s=_seconds(session, request_id, Stage.PREPARE),
                train_s=_seconds(session, request_id, Stage.TRAIN),
                **{name: facts[name] for name in facts if name in measured.__dataclass_fields__},
            )
        )
    return [one for one in found if one.device == found[0].device]


def _told(session: Session, request_id: str, kind: str) -> dict[str, Any] | None:
    return session.scalar(
        select(Event.data)
        .where(Event.request_id == request_id, Event.kind == kind)
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
