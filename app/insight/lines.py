"""A request's log, page by page, by level and by text."""

from collections.abc import Sequence
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db import models
from app.insight.schemas import LogLine, LogPage

MAX_LINES: Final = 5_000
"""Of one page: some 600 kB."""


def page(
    session: Session,
    request_id: str,
    *,
    after: int | None,
    before: int | None,
    limit: int,
    levels: Sequence[str],
    search: str,
) -> LogPage:
    """With ``after`` the oldest lines above that id, else the newest (below ``before``)."""
    line = models.LogLine
    matching = [line.request_id == request_id]
    if levels:
        matching.append(line.level.in_(levels))
    if search:
        matching.append(line.message.icontains(search, autoescape=True))
    query = select(line).where(*matching)
    if after is not None:
        rows = list(session.scalars(query.where(line.id > after).order_by(line.id).limit(limit)))
    else:
        if before is not None:
            query = query.where(line.id < before)
        rows = list(session.scalars(query.order_by(line.id.desc()).limit(limit)))[::-1]
    return LogPage(
        lines=[shown(row) for row in rows],
        total=session.scalar(select(func.count()).select_from(line).where(*matching)) or 0,
        newest=session.scalar(select(func.max(line.id)).where(line.request_id == request_id)) or 0,
    )


def shown(row: models.LogLine) -> LogLine:
    return LogLine(id=row.id, ts=row.ts, level=row.level, message=row.message)
