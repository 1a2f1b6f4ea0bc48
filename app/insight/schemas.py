"""What these routes answer."""

from typing import Any

from pydantic import BaseModel, Field

from app.requests.schemas import LiveEvent, StageName, Status


class Curve(BaseModel):
    """Training steps in buckets, as columns of one length. A null has no value there."""

    bucket_steps: int = Field(description="Steps per bucket; 1: every step by itself.")
    first_step: int
    last_step: int = Field(description="The newest step there is, also outside of the range.")
    steps: list[int] = Field(description="The last step of each bucket.")
    loss: list[float | None] = Field(description="Mean of the bucket.")
    loss_min: list[float | None]
    loss_max: list[float | None]
    lr: list[float | None]
    step_time_s: list[float | None] = Field(description="Mean of the bucket.")
    after: int = Field(description="Id of the newest event: follow with `after` from here.")


class LogLine(BaseModel):
    id: int
    ts: float = Field(description="Epoch seconds.")
    level: str
    message: str


class LogPage(BaseModel):
    """Lines, oldest first."""

    lines: list[LogLine]
    total: int = Field(description="Lines of this request that match, on all pages.")
    newest: int = Field(description="Id of its newest line, whether it matches or not.")


class LiveChange(BaseModel):
    """What is new since the ids that the listener knows."""

    status: Status
    stage: StageName
    progress: dict[str, Any] | None
    queue_position: int | None
    error: str | None
    events: list[LiveEvent]
    lines: list[LogLine]
    after: int
    log_after: int


class Sample(BaseModel):
    """A prepared sample to look at: a small playable clip, or a still."""

    id: str
    url: str
    content_type: str


class Samples(BaseModel):
    samples: list[Sample]
