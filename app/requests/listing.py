"""A key's own requests, whatever their endpoint: its newest ones, and any one by its id alone."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query
from sqlalchemy import ColumnElement, Select, Text, cast, or_, select
from sqlalchemy.orm import Session

from app import modes
from app.auth import Authenticator
from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import Attempt, Purpose, Request, State
from app.errors import ExpiredRequest, UnknownRequest
from app.requests import lifecycle, repository
from app.requests.answers import metrics_of, stage_of, urls
from app.requests.ids import MAX_ID_CHARACTERS, AnId, IdInPath
from app.requests.schemas import WIRE_STATUS, AttemptMade, Found, Listed, RequestList, Standing

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100
"""Requests per page: some 60 kB."""
MAX_SEARCH_CHARACTERS: Final = 200
LABELS: Final = ("trigger_phrase", "prompt")
"""Fields of an input by which its user knows it again."""
CANCELLED: Final = "client_cancelled"

STANDING: Final[dict[Standing, ColumnElement[bool]]] = {
    "queued": Request.state == State.QUEUED,
    "running": Request.state == State.RUNNING,
    "succeeded": (Request.state == State.COMPLETED) & (Request.result_status == 200),
    "failed": (Request.state == State.COMPLETED)
    & (Request.result_status != 200)
    & (Request.error_type != CANCELLED),
    "cancelled": (Request.state == State.COMPLETED) & (Request.error_type == CANCELLED),
}


@dataclass(frozen=True)
class Filter:
    """Which requests are wanted; None: all."""

    standing: Standing | None = None
    endpoint: str | None = None
    purpose: Purpose | None = None
    search: str | None = None

    def apply(self, query: Select[Request]) -> Select[Request]:
        if self.standing is not None:
            query = query.where(STANDING[self.standing])
        if self.endpoint is not None:
            query = query.where(
                or_(Request.endpoint == self.endpoint, Request.mode == self.endpoint)
            )
        if self.purpose is not None:
            query = query.where(Request.purpose == self.purpose)
        if self.search:
            text = self.search
            query = query.where(
                or_(
                    Request.id.startswith(text, autoescape=True),
                    cast(Request.input, Text).icontains(text, autoescape=True),
                )
            )
        return query


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
            AnId | None,
            Query(max_length=MAX_ID_CHARACTERS, description="An id: only older ones."),
        ] = None,
        standing: Annotated[Standing | None, Query(description="Only those in this state.")] = None,
        endpoint: Annotated[
            str | None, Query(max_length=255, description="Only those of this endpoint or path.")
        ] = None,
        purpose: Annotated[Literal["train", "check"] | None, Query()] = None,
        search: Annotated[
            str | None,
            Query(
                max_length=MAX_SEARCH_CHARACTERS, description="An id's beginning, or input text."
            ),
        ] = None,
    ) -> RequestList:
        """Your newest requests."""
        wanted = Filter(standing, endpoint, Purpose(purpose) if purpose else None, search)
        rows = await database.read(_newest, owner, limit + 1, before, wanted)
        shown = [Listed.model_validate(listed(row, public_url)) for row in rows[:limit]]
        more = len(rows) > limit
        return RequestList(requests=shown, before=shown[-1].request_id if more else None)

    @router.get("/requests/{request_id}")
    async def find_request(
        request_id: IdInPath,
        owner: Annotated[str, Depends(authenticate)],
    ) -> Found:
        """One request, without its endpoint: ids are unique. With its input and its attempts."""
        row, position, attempts = await database.read(_closely, owner, request_id)
        if row.expired_at is not None:
            raise ExpiredRequest(row.expired_at, retention_s)
        return _found(row, public_url, position, attempts)

    return router


def _newest(
    session: Session, owner: str, limit: int, before: str | None, wanted: Filter
) -> list[Request]:
    query = select(Request).where(Request.owner == owner, Request.expired_at.is_(None))
    if before is not None:
        query = query.where(Request.number < own_request(session, owner, before).number)
    return list(session.scalars(wanted.apply(query).order_by(Request.number.desc()).limit(limit)))


def own_request(session: Session, owner: str, request_id: str) -> Request:
    """Raises `UnknownRequest`, for another owner's request too."""
    row = session.scalar(select(Request).where(Request.id == request_id, Request.owner == owner))
    if row is None:
        raise UnknownRequest
    return row


def _closely(
    session: Session, owner: str, request_id: str
) -> tuple[Request, int | None, list[Attempt]]:
    row = own_request(session, owner, request_id)
    position = repository.position(session, row) if row.state == State.QUEUED else None
    attempts = session.scalars(
        select(Attempt).where(Attempt.request_id == row.id).order_by(Attempt.number)
    )
    return row, position, list(attempts)


def _time(epoch_s: float | None) -> str | None:
    return None if epoch_s is None else iso8601(epoch_s)


def standing_of(row: Request) -> Standing:
    """In one word."""
    if row.state != State.COMPLETED:
        return "queued" if row.state == State.QUEUED else "running"
    if row.result_status == 200:
        return "succeeded"
    return "cancelled" if row.error_type == CANCELLED else "failed"


def usd_of(row: Request) -> float | None:
    """What fal would ask for it; None where the mode is not served any more."""
    try:
        return float(modes.by_path(row.mode).price_per_unit * (row.billable_units or 0))
    except KeyError:
        return None


def label_of(input: dict[str, Any]) -> str:
    """The first text by which its user knows it again; may be empty."""
    return next((str(input[name]) for name in LABELS if input.get(name)), "")


def listed(row: Request, public_url: str) -> dict[str, Any]:
    return {
        "request_id": row.id,
        **urls(public_url, row),
        "endpoint": row.endpoint,
        "mode": row.mode,
        "purpose": row.purpose,
        "label": label_of(row.input or {}),
        "status": WIRE_STATUS[row.state],
        "standing": standing_of(row),
        "stage": stage_of(row.mode, row.stage),
        "progress": row.progress,
        "created_at": iso8601(row.created_at),
        "started_at": _time(row.started_at),
        "finished_at": _time(row.finished_at),
        "inference_time": metrics_of(row).get("inference_time"),
        "billable_units": row.billable_units,
        "usd": usd_of(row) if row.state == State.COMPLETED else None,
        "error": row.error,
        "error_type": row.error_type,
    }


def _found(row: Request, public_url: str, position: int | None, attempts: list[Attempt]) -> Found:
    return Found.model_validate(
        {
            **listed(row, public_url),
            "input": row.input,
            "tags": row.tags,
            "webhook_url": row.webhook_url,
            "queue_position": position,
            "cancel_requested": row.cancel_requested_at is not None,
            "wishes": list(lifecycle.wishes_of(row)),
            "attempts": [
                AttemptMade(
                    number=attempt.number,
                    stage=attempt.stage,
                    worker=attempt.worker,
                    started_at=iso8601(attempt.started_at),
                    ended_at=_time(attempt.ended_at),
                    outcome=attempt.outcome,
                    detail=attempt.detail,
                )
                for attempt in attempts
            ],
        }
    )
