"""Bodies for the modes: their pages' examples with changes, and what a gateway says to them."""

import copy
from typing import Any, NamedTuple

from app import modes
from app.modes.base import AnyMode, Generation, Training
from tests.app.conftest import Gateway, row

MISSING: Any = object()
"""In place of a value: the field is left out."""

TRAININGS = [mode for mode in modes.all() if isinstance(mode, Training)]
GENERATIONS = [mode for mode in modes.all() if isinstance(mode, Generation)]

PROMPT = {"prompt": "a"}
VIDEO = {**PROMPT, "video_url": "https://example.com/a.mp4"}
MASKED = {**VIDEO, "mask_url": "https://example.com/a.png"}
"""Entries of ``validation``."""


class Bad(NamedTuple):
    """Changes that break one rule, and the 422 they get."""

    id: str
    changes: dict[str, Any]
    loc: str
    """Below ``body``, with dots."""
    type: str
    says: str = ""


def wrong(name: str, value: Any, type: str, says: str = "", loc: str = "") -> Bad:
    """One field with a bad value."""
    shown = "is missing" if value is MISSING else repr(value)[:40]
    return Bad(f"{name} {shown}", {name: value}, loc or name, type, says)


def wrong_entry(entry: Any, part: str, type: str, says: str = "") -> Bad:
    """One preview with a bad or missing part."""
    return wrong("validation", [entry], type, says, f"validation.0.{part}")


def example(mode: AnyMode) -> dict[str, Any]:
    """The body that the mode's page recommends, as OpenAPI shows it."""
    return copy.deepcopy(mode.request_model.model_json_schema()["examples"][0])


def changed(path: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The example of the mode at ``path``, some of its fields replaced or left out."""
    body = {**example(modes.by_path(path)), **changes}
    return {name: value for name, value in body.items() if value is not MISSING}


def parsed(path: str, **changes: Any) -> Any:
    """The same as a request object."""
    return modes.by_path(path).request_model.model_validate(changed(path, changes))


def refused(gateway: Gateway, path: str, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """The details of the 422."""
    reply = gateway.client.post(f"/{path}", json=changed(path, changes))
    assert reply.status_code == 422, reply.text[:500]
    assert reply.headers["x-fal-billable-units"] == "0"
    assert len(reply.content) < 1_500
    details: list[dict[str, Any]] = reply.json()["detail"]
    return details


def check_refused(gateway: Gateway, path: str, bad: Bad) -> None:
    """One error, at the place and with the words that the row has."""
    (detail,) = refused(gateway, path, bad.changes)
    assert ".".join(str(part) for part in detail["loc"]) == f"body.{bad.loc}"
    assert detail["type"] == bad.type
    assert detail["url"].endswith(f"#{bad.type}")
    assert bad.says in detail["msg"]


def accepted(gateway: Gateway, path: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The stored input of a request that was taken."""
    reply = gateway.client.post(f"/{path}", json=changed(path, changes))
    assert reply.status_code == 200, reply.text[:500]
    return row(gateway.database, reply.json()["request_id"]).input
