"""``/requests/{id}/curve``, ``/log``, ``/live``, ``/samples``: one request, looked at closely."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.auth import Authenticator
from app.db.models import LANDMARK, Event
from app.db.models import Request as Row
from app.errors import ExpiredRequest
from app.insight import curve, lines, live
from app.insight.schemas import Curve, LiveChange, LogPage, Sample, Samples
from app.requests.answers import stage_of
from app.requests.files import signed
from app.requests.ids import MAX_ROW_ID, IdInPath, RowId
from app.requests.listing import own_request
from app.requests.repository import EVENTS_PAGE
from app.requests.schemas import WIRE_STATUS, Events, LiveEvent
from app.requests.service import Asked, RequestService
from app.storage import Storage

MAX_STEP: Final = (1 << 31) - 1
MAX_SEARCH_CHARACTERS: Final = 200
LOOKS: Final = "looks"
"""Folder of a prepared dataset with samples to look at (`preprocessing/looks.py`)."""
TYPES: Final = {"mp4": "video/mp4", "png": "image/png"}

Kind = Literal["stage", "step", "checkpoint", "preview", "granted", "trained", "generated"]
Level = Literal["DEBUG", "INFO", "WARN", "ERROR"]


def make_router(
    service: RequestService, authenticate: Authenticator, storage: Storage
) -> APIRouter:
    """Another owner's requests are as absent as none."""
    router = APIRouter(tags=["requests"])

    async def row_of(
        request_id: IdInPath,
        owner: Annotated[str, Depends(authenticate)],
    ) -> Row:
        return await service.read(_find, request_id, owner, service.retention_s)

    OneRow = Annotated[Row, Depends(row_of)]

    @router.get("/requests/{request_id}/curve")
    async def get_curve(
        row: OneRow,
        first: Annotated[int, Query(ge=0, le=MAX_STEP)] = 1,
        last: Annotated[int | None, Query(ge=0, le=MAX_STEP)] = None,
        points: Annotated[int, Query(ge=10, le=curve.MAX_POINTS)] = 1_000,
    ) -> Curve:
        """Loss, learning rate and step time, thinned to so many points."""
        return await service.read(curve.curve, row.id, first=first, last=last, points=points)

    @router.get("/requests/{request_id}/events")
    async def get_events(
        row: OneRow,
        after: RowId = 0,
        kind: Annotated[list[Kind] | None, Query(max_length=7)] = None,
    ) -> Events:
        """Its events, a page at a time; only those of some kinds, if you like."""
        found = await service.read(_events, row, after, kind or [])
        return Events.model_validate(await asyncio.to_thread(signed, storage, found.model_dump()))

    @router.get("/requests/{request_id}/log")
    async def get_log(
        row: OneRow,
        after: Annotated[int | None, Query(ge=0, le=MAX_ROW_ID)] = None,
        before: Annotated[int | None, Query(ge=0, le=MAX_ROW_ID)] = None,
        limit: Annotated[int, Query(ge=1, le=lines.MAX_LINES)] = 1_000,
        level: Annotated[list[Level] | None, Query(max_length=4)] = None,
        search: Annotated[str, Query(max_length=MAX_SEARCH_CHARACTERS)] = "",
    ) -> LogPage:
        """Its log: the newest lines, those before or after one, those with a text."""
        return await service.read(
            lines.page,
            row.id,
            after=after,
            before=before,
            limit=limit,
            levels=level or [],
            search=search,
        )

    @router.get("/requests/{request_id}/live", response_model=LiveChange)
    async def get_live(
        request: Request,
        row: OneRow,
        after: RowId = 0,
        log_after: RowId = 0,
        last_event_id: Annotated[str | None, Header(include_in_schema=False)] = None,
    ) -> Response:
        """Changes as server-sent events, until it has ended."""
        asked = Asked(row.app, row.id, row.owner, service.retention_s)
        start = live.position(last_event_id, after, log_after)
        permitted = partial(authenticate, request)
        return await live.follow(service, storage, asked, permitted, *start)

    @router.get("/requests/{request_id}/samples")
    async def get_samples(row: OneRow) -> Samples:
        """What its dataset became, to look at; ids are those of the dataset report."""
        key = (row.prepared or {}).get("key")
        return await asyncio.to_thread(_samples, storage, key)

    return router


def _find(session: Session, request_id: str, owner: str, retention_s: float) -> Row:
    row = own_request(session, owner, request_id)
    if row.expired_at is not None:
        raise ExpiredRequest(row.expired_at, retention_s)
    return row


def _events(session: Session, row: Row, after: int, kinds: Sequence[str]) -> Events:
    query = select(Event).where(Event.request_id == row.id, Event.id > after)
    if kinds:
        query = query.where(Event.kind.in_(kinds))
        if "step" not in kinds:
            query = query.where(text(LANDMARK))  # as the index has it
    events = session.scalars(query.order_by(Event.id).limit(EVENTS_PAGE)).all()
    return Events.model_validate(
        {
            "status": WIRE_STATUS[row.state],
            "stage": stage_of(row.mode, row.stage),
            "progress": row.progress,
            "events": [
                LiveEvent(id=event.id, ts=event.ts, kind=event.kind, data=event.data)
                for event in events
            ],
            "after": events[-1].id if events else after,
        }
    )


def _samples(storage: Storage, key: Any) -> Samples:
    if not isinstance(key, str):
        return Samples(samples=[])
    found = []
    for look in storage.list_keys(f"{key}/{LOOKS}"):
        name = look.rpartition("/")[2]
        stem, _, suffix = name.rpartition(".")
        if suffix in TYPES:
            url = storage.signed_url(look, file_name=name)
            found.append(Sample(id=stem, url=url, content_type=TYPES[suffix]))
    return Samples(samples=found)
