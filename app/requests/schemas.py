"""What the queue's routes answer (`fal-protocol.md` 2.2, 2.3), for code and for OpenAPI."""

from typing import Any, Final, Literal

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from app.db.models import State
from trainer.spec import Wish

Status = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]

StageName = Literal["prepare", "train", "generate"]
"""`Stage.PREPARE`, and what the mode calls the other one."""

Standing = Literal["queued", "running", "succeeded", "failed", "cancelled"]

WIRE_STATUS: Final[dict[str, Status]] = {
    State.QUEUED: "IN_QUEUE",
    State.RUNNING: "IN_PROGRESS",
    State.COMPLETED: "COMPLETED",
}


class Reference(BaseModel):
    """A request by its id, with the three URLs that clients follow."""

    request_id: str
    response_url: str
    status_url: str
    cancel_url: str


class Submitted(Reference):
    status: Status = "IN_QUEUE"
    queue_position: int = Field(description="How many queued requests come before this one.")
    gateway_request_id: str


class LogEntry(BaseModel):
    message: str
    timestamp: str = Field(description="ISO 8601, UTC.")
    level: str
    source: Literal["USER"] = "USER"


class RequestStatus(Reference):
    """202 until the request is COMPLETED, then 200."""

    status: Status
    queue_position: int | None = Field(None, description="Only while IN_QUEUE.")
    logs: list[LogEntry] | None = Field(description="The newest lines, when asked for.")
    metrics: dict[str, float] = Field(description="`inference_time` in seconds once COMPLETED.")
    error: str | None = None
    error_type: str | None = None

    @model_serializer(mode="wrap")
    def _absent_unless_known(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # ``logs`` stays, also as null: Python's client fails without the key.
        found = handler(self)
        return {key: value for key, value in found.items() if value is not None or key == "logs"}


class Listed(Reference):
    """A request as a list of them has it."""

    endpoint: str
    mode: str = Field(description="The endpoint's short path.")
    purpose: Literal["train", "check"]
    label: str = Field(description="Its trigger phrase or prompt; may be empty.")
    status: Status
    standing: Standing = Field(description="The status, and how it ended.")
    stage: StageName
    progress: dict[str, Any] | None
    created_at: str = Field(description="ISO 8601, UTC.")
    started_at: str | None
    finished_at: str | None
    inference_time: float | None = Field(description="Seconds of work, once COMPLETED.")
    billable_units: int | None
    usd: float | None = Field(description="What fal would ask for it; nothing is charged here.")
    error: str | None
    error_type: str | None


class AttemptMade(BaseModel):
    """One claim of a request by a worker."""

    number: int
    stage: str
    worker: str
    started_at: str
    ended_at: str | None
    outcome: str | None
    detail: str | None


class Found(Listed):
    """A request by itself: also what was asked, and who worked on it."""

    input: dict[str, Any] = Field(description="As validated, every default filled in.")
    tags: dict[str, Any]
    webhook_url: str | None
    queue_position: int | None = Field(description="Only while IN_QUEUE.")
    cancel_requested: bool
    wishes: list[Literal["save", "sample"]] = Field(
        description="What its training was asked for and has not done yet."
    )
    attempts: list[AttemptMade]


class RequestList(BaseModel):
    """The key's requests, the newest first."""

    requests: list[Listed]
    before: str | None = Field(description="Pass it as `before` for older ones; null: no more.")


class LiveEvent(BaseModel):
    id: int
    ts: float = Field(description="Epoch seconds.")
    kind: str
    data: dict[str, Any]


class Events(BaseModel):
    """One page of a request's events, and how far it is."""

    status: Status
    stage: StageName
    progress: dict[str, Any] | None
    events: list[LiveEvent]
    after: int = Field(description="Pass it as `after` to get what follows.")


class Wished(BaseModel):
    """A wish that waits for the end of a training's current step."""

    wish: Wish
    since: str = Field(description="When it was first asked for: ISO 8601, UTC.")


class CancelAnswer(BaseModel):
    status: Literal["CANCELLATION_REQUESTED", "ALREADY_COMPLETED", "NOT_FOUND"]
