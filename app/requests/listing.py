"""A key's own requests, whatever their endpoint: its newest ones, and any one by its id alone."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.auth import Authenticator
from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import Request
from app.errors import ExpiredRequest, UnknownRequest
from app.requests.answers import stage_of
from app.requests.schemas import WIRE_STATUS, Listed, RequestList

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100
"""Requests per page: some 60 kB."""
MAX_ID_CHARACTERS: Final = 64
"""Longer than any id; what is longer names no request."""


def listing_router(
    database: AsyncDatabase, public_url: str, authenticate: Authenticator, retention_s: float = 0.0
) -> APIRouter:
    """``/requests`` and ``/requests/{id}``. Another owner's requests are as absent as none."""
    router = APIRouter(tags=["requests"])

    @router.get("/requests")
    async def list_requests(
        owner: Annotated[str, Depends(authenticate)],
        limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
        before: Annotated[
            str | None, Query(max_length=MAX_ID_CHARACTERS, description="An id: only older ones.")
        ] = None,
    ) -> RequestList:
        """Your newest requests."""
        rows = await database.read(_newest, owner, limit + 1, before)
        shown = [_listed(row, public_url) for row in rows[:limit]]
        more = len(rows) > limit
        return RequestList(requests=shown, before=shown[-1].request_id if more else None)

    @router.get("/requests/{request_id}")
    async def find_request(
        request_id: Annotated[str, Path(max_length=MAX_ID_CHARACTERS)],
        owner: Annotated[str, Depends(authenticate)],
    ) -> Listed:
        """One request, without its endpoint: ids are unique."""
        row = await database.read(_get, owner, request_id)
        if row.expired_at is not None:
            raise ExpiredRequest(row.expired_at, retention_s)
        return _listed(row, public_url)

    return router


def _newest(session: Session, owner: str, limit: int, before: str | None) -> list[Request]:
    query = select(Request).where(Request.owner == owner, Request.expired_at.is_(None))
    if before is not None:
        query = query.where(Request.number < _get(session, owner, before).number)
    return list(session.scalars(query.order_by(Request.number.desc()).limit(limit)))


def _get(session: Session, owner: str, request_id: str) -> Request:
    row = session.scalar(select(Request).where(Request.id == request_id, Request.owner == owner))
    if row is None:
        raise UnknownRequest
    return row


def _listed(row: Request, public_url: str) -> Listed:
    base = f"{public_url}/{row.app}/requests/{row.id}"
    return Listed.model_validate(
        {
            "request_id": row.id,
            "response_url": base,
            "status_url": f"{base}/status",
            "cancel_url": f"{base}/cancel",
            "endpoint": row.endpoint,
            "status": WIRE_STATUS[row.state],
            "stage": stage_of(row.mode, row.stage),
            "progress": row.progress,
            "created_at": iso8601(row.created_at),
            "finished_at": None if row.finished_at is None else iso8601(row.finished_at),
            "error": row.error,
            "error_type": row.error_type,
        }
    )
