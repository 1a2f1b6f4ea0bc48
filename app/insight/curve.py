"""The loss curve of a training, thinned where the rows are.

A training has a row per step. A page draws a thousand points, so the database makes a thousand:
means with their extremes, so that a spike stays visible at any zoom.
"""

from typing import Any, Final

from sqlalchemy import JSON, Integer, cast, func, select, type_coerce
from sqlalchemy.orm import Session

from app.db.models import Event
from app.insight.schemas import Curve

MAX_POINTS: Final = 4_000
"""More than any screen has columns."""
STEP: Final = "step"


def curve(session: Session, request_id: str, *, first: int, last: int | None, points: int) -> Curve:
    """Steps ``first`` to ``last`` (None: the newest) in at most ``points`` buckets."""
    data = type_coerce(Event.data, JSON)
    ours = (Event.request_id == request_id, Event.kind == STEP)
    newest = session.execute(
        select(Event.id, Event.data).where(*ours).order_by(Event.id.desc()).limit(1)
    ).one_or_none()
    newest_step = int(newest.data["step"]) if newest else 0
    end = min(last, newest_step) if last is not None else newest_step
    width = max(1, -(-(end - first + 1) // points))
    step = data["step"].as_integer()
    # Each row's JSON is read once.
    rows = (
        select(
            step.label("step"),
            data["loss"].as_float().label("loss"),
            data["lr"].as_float().label("lr"),
            data["step_time_s"].as_float().label("step_time_s"),
        )
        .where(*ours, *(() if first <= 1 and end == newest_step else (step >= first, step <= end)))
        .subquery()
    )
    bucket = cast(rows.c.step - first, Integer) // width
    found = session.execute(
        select(
            func.max(rows.c.step),
            func.avg(rows.c.loss),
            func.min(rows.c.loss),
            func.max(rows.c.loss),
            func.avg(rows.c.lr),
            func.avg(rows.c.step_time_s),
        )
        .group_by(bucket)
        .order_by(bucket)
    ).all()
    columns: list[list[Any]] = [list(column) for column in zip(*found, strict=True)] or [[]] * 6
    steps, loss, loss_min, loss_max, lr, step_time_s = columns
    return Curve(
        bucket_steps=width,
        first_step=first,
        last_step=newest_step,
        steps=steps,
        loss=loss,
        loss_min=loss_min,
        loss_max=loss_max,
        lr=lr,
        step_time_s=step_time_s,
        after=_newest_event(session, request_id),
    )


def _newest_event(session: Session, request_id: str) -> int:
    return session.scalar(select(func.max(Event.id)).where(Event.request_id == request_id)) or 0
