"""What several routes say about a request, from its row."""

from typing import Any, Protocol, TypedDict

from app import modes
from app.db.models import Stage, State


class Named(Protocol):
    """What a request's URLs are made of."""

    @property
    def id(self) -> Any: ...
    @property
    def app(self) -> Any: ...


class Timed(Protocol):
    """The columns that tell how long it took, of an ORM object or of a plain row."""

    @property
    def state(self) -> Any: ...
    @property
    def started_at(self) -> Any: ...
    @property
    def finished_at(self) -> Any: ...
    @property
    def inference_time(self) -> Any: ...


class Urls(TypedDict):
    """What clients follow."""

    response_url: str
    status_url: str
    cancel_url: str


def urls(public_url: str, row: Named) -> Urls:
    """Of one request."""
    base = f"{public_url}/{row.app}/requests/{row.id}"
    return {"response_url": base, "status_url": f"{base}/status", "cancel_url": f"{base}/cancel"}


def metrics_of(row: Timed) -> dict[str, float]:
    """fal's ``inference_time``: what the work took, or for a failure how long it was tried."""
    if row.state != State.COMPLETED or row.finished_at is None:
        return {}
    if row.inference_time is not None:
        return {"inference_time": row.inference_time}
    return {"inference_time": max(0.0, row.finished_at - (row.started_at or row.finished_at))}


def stage_of(mode: str, stage: str) -> str:
    """A row's stage as its mode calls it. A mode that this version lacks has the row's own word."""
    if stage != Stage.TRAIN:
        return stage
    return next((known.gpu_stage for known in modes.all() if known.path == mode), stage)
