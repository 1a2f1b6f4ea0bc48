"""``/keys``: an operator makes and revokes keys. They are listed in `app/insight/usage.py`."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from sqlalchemy.orm import Session

from app.auth import Authenticator, is_operator, may_change_keys
from app.clock import iso8601
from app.db.engine import AsyncDatabase
from app.errors import Forbidden, InvalidInput, NotFound
from app.keys import store
from app.keys.sizes import MAX_BYTES
from app.keys.store import MAX_COUNT, MAX_NAME_CHARACTERS
from app.requests.body import read_json_bytes
from app.requests.ids import IdInPath


class KeyWanted(BaseModel):
    """A key to make; a limit that is null or left out is none."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARACTERS)
    max_queued: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    max_running: int | None = Field(default=None, ge=0, le=MAX_COUNT)
    max_storage_bytes: int | None = Field(default=None, ge=0, le=MAX_BYTES)

    @field_validator("name")
    @classmethod
    def _is_readable(cls, name: str) -> str:
        name = name.strip()
        if not name or not name.isprintable():
            raise ValueError("a name has printable characters only, and not just spaces")
        return name


class KeyMade(BaseModel):
    id: str
    name: str
    key: str = Field(description="Shown this once; only its hash is stored.")


class KeyRevoked(BaseModel):
    id: str
    revoked_at: str


BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": KeyWanted.model_json_schema()}},
    }
}


def make_router(database: AsyncDatabase, authenticate: Authenticator) -> APIRouter:
    """For keys of the environment."""
    router = APIRouter(tags=["usage"])

    async def operator(owner: Annotated[str, Depends(authenticate)]) -> str:
        if not is_operator(owner):
            raise Forbidden("Only keys of REELSMITH_API_KEYS may make and revoke keys.")
        if not may_change_keys(owner):
            raise Forbidden(
                "The first key ends the mode without keys, and what was made in it stays behind: "
                "make it on the server with `reelsmith keys create --name NAME`."
            )
        return owner

    @router.post("/keys", status_code=201, dependencies=[Depends(operator)], openapi_extra=BODY)
    async def make_key(request: Request) -> KeyMade:
        """Make a key. What opens is shown in this answer, and never again."""
        try:
            wanted = KeyWanted.model_validate_json(await read_json_bytes(request))
        except ValidationError as error:
            raise InvalidInput.of(error) from None
        limits = store.Limits(**wanted.model_dump(exclude={"name"}))
        id, key = await database.write(store.create, wanted.name, limits)
        return KeyMade(id=id, name=wanted.name, key=key)

    @router.delete("/keys/{key_id}", dependencies=[Depends(operator)])
    async def revoke_key(key_id: IdInPath) -> KeyRevoked:
        """Nobody enters with it any more, within two seconds; its browser sessions end at once,
        and what it has submitted goes on."""
        return KeyRevoked(id=key_id, revoked_at=iso8601(await database.write(_revoke, key_id)))

    return router


def _revoke(session: Session, id: str) -> float:
    try:
        return store.revoke(session, id)
    except store.UnknownKey:
        raise NotFound(
            "No key has this id. Keys of the environment end where REELSMITH_API_KEYS is set."
        ) from None
