"""``/requests/{id}/save`` and ``/sample``: what a running training is asked for on its way."""

from typing import Annotated, Final

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from sqlalchemy.orm import Session

from app import modes
from app.auth import Authenticator
from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.db.models import Purpose, State
from app.errors import REQUEST_ID, ExpiredRequest, NotTraining
from app.modes.base import Generation, Training
from app.requests import lifecycle
from app.requests.ids import IdInPath
from app.requests.listing import own_request
from app.requests.schemas import Wished
from trainer.spec import Wish

ACCEPTED: Final = 202


def make_router(
    database: AsyncDatabase, authenticate: Authenticator, retention_s: float = 0.0
) -> APIRouter:
    """Another owner's requests are as absent as none."""
    router = APIRouter(tags=["requests"])
    Owner = Annotated[str, Depends(authenticate)]

    async def ask(request_id: str, owner: str, wish: Wish) -> Response:
        since = await database.write(_ask, request_id, owner, wish, retention_s)
        answer = Wished(wish=wish, since=iso8601(since))
        return JSONResponse(answer.model_dump(), ACCEPTED, {REQUEST_ID: request_id})

    @router.put("/requests/{request_id}/save", status_code=ACCEPTED, response_model=Wished)
    async def save_now(request_id: IdInPath, owner: Owner) -> Response:
        """Save a checkpoint after the current step. It changes nothing of the result; asked again
        while it waits, it is the same wish."""
        return await ask(request_id, owner, Wish.SAVE)

    @router.put("/requests/{request_id}/sample", status_code=ACCEPTED, response_model=Wished)
    async def sample_now(request_id: IdInPath, owner: Owner) -> Response:
        """Make previews of the validation prompts after the current step. It changes nothing of
        the LoRA; asked again while it waits, it is the same wish."""
        return await ask(request_id, owner, Wish.SAMPLE)

    return router


def _ask(session: Session, request_id: str, owner: str, wish: Wish, retention_s: float) -> float:
    row = own_request(session, owner, request_id)
    if row.expired_at is not None:
        raise ExpiredRequest(row.expired_at, retention_s)
    mode = modes.by_path(row.mode) if row.state == State.RUNNING else None
    if row.purpose == Purpose.CHECK or isinstance(mode, Generation):
        raise NotTraining("This request is no training; only trainings save and sample.")
    if isinstance(mode, Training) and wish == Wish.SAMPLE:
        spec = mode.training_spec(mode.parse(row.input))
        if not spec.validation.prompts:
            raise NotTraining(
                "This training has no validation prompts to sample. Submit it with `validation`."
            )
    return lifecycle.request_wish(session, request_id, owner, wish)
