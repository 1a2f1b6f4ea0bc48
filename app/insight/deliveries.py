"""A key's webhook deliveries: what was sent, what came of it, and sending it again."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from app.auth import Authenticator
from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import Request, State, WebhookAttempt
from app.errors import BadRequest
from app.requests.ids import IdInPath
from app.requests.listing import own_request
from app.webhooks import deliveries


class Try(BaseModel):
    number: int
    started_at: str
    seconds: float | None
    status: int | None = Field(description="The receiver's; null: no answer.")
    error: str | None


class Delivery(BaseModel):
    """One request's webhook."""

    request_id: str
    url: str
    state: Literal["waiting", "due", "delivered", "given up"] = Field(
        description="waiting: for the request's end. due: another attempt follows."
    )
    next_at: str | None
    tries: list[Try] = Field(description="The oldest first.")


class Deliveries(BaseModel):
    deliveries: list[Delivery] = Field(description="Of your newest requests with a webhook.")


class Redelivery(BaseModel):
    status: Literal["DUE"] = "DUE"


def make_router(database: AsyncDatabase, authenticate: Authenticator) -> APIRouter:
    """``/webhooks/deliveries``. Another owner's are as absent as none."""
    router = APIRouter(tags=["webhooks"])
    Owner = Annotated[str, Depends(authenticate)]

    @router.get("/webhooks/deliveries")
    async def list_deliveries(owner: Owner) -> Deliveries:
        """Webhooks of your newest requests, with every attempt."""
        return await database.read(_list, owner)

    @router.post("/webhooks/deliveries/{request_id}/redeliver")
    async def redeliver(owner: Owner, request_id: IdInPath) -> Redelivery:
        """Send a webhook again, within a second or two, with the whole schedule before it."""
        await database.write(_redeliver, owner, request_id)
        return Redelivery()

    return router


def _list(session: Session, owner: str) -> Deliveries:
    rows = deliveries.recent(session, owner=owner)
    tries = deliveries.attempts(session, [row.id for row in rows])
    return Deliveries(deliveries=[_delivery(row, tries[row.id]) for row in rows])


def _delivery(row: Request, tries: list[WebhookAttempt]) -> Delivery:
    return Delivery(
        request_id=row.id,
        # Without its query, which may hold the receiver's secret.
        url=(row.webhook_url or "").partition("?")[0],
        state=_state(row, tries),
        next_at=None if row.webhook_next_at is None else iso8601(row.webhook_next_at),
        tries=[
            Try(
                number=one.number,
                started_at=iso8601(one.started_at),
                seconds=one.seconds,
                status=one.status,
                error=one.error,
            )
            for one in tries
        ],
    )


def _state(
    row: Request, tries: list[WebhookAttempt]
) -> Literal["waiting", "due", "delivered", "given up"]:
    if row.state != State.COMPLETED:
        return "waiting"
    if row.webhook_next_at is not None:
        return "due"
    delivered = tries and tries[-1].status is not None and tries[-1].error is None
    return "delivered" if delivered else "given up"


def _redeliver(session: Session, owner: str, request_id: str) -> None:
    """Raises `UnknownRequest`, `BadRequest`."""
    own_request(session, owner, request_id)
    try:
        deliveries.redeliver(session, request_id)
    except deliveries.RedeliveryRefused as error:
        raise BadRequest(str(error)) from None
