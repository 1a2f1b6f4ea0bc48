"""`GET /requests` and `GET /requests/{id}`: the key's own requests, newest first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.auth import owner_of
from app.db.models import Stage
from app.requests import lifecycle
from tests.app.client.conftest import KEY, OTHER, Served, serving
from tests.app.conftest import submit
from tests.app.test_lifecycle import claimed, do

MINE = {"authorization": f"Key {KEY}"}
THEIRS = {"authorization": f"Key {OTHER}"}


@pytest.fixture
def guarded(tmp_path: Path, database_url: str) -> Iterator[Served]:
    with serving(tmp_path / "service", database_url, api_keys=f"{KEY},{OTHER}") as served:
        yield served


def get(served: Served, path: str, headers: dict[str, str] = MINE, **params: Any) -> httpx.Response:
    return httpx.get(served.url + path, headers=headers, params=params, trust_env=False)


def ids(page: httpx.Response) -> list[str]:
    return [found["request_id"] for found in page.json()["requests"]]


def test_newest_first_page_by_page(guarded: Served) -> None:
    mine = [submit(guarded.database, owner_of(KEY)) for _ in range(5)]
    submit(guarded.database, owner_of(OTHER))
    newest = get(guarded, "/requests", limit=2)
    assert ids(newest) == mine[:2:-1]
    assert newest.json()["before"] == mine[3]
    older = get(guarded, "/requests", limit=2, before=mine[3])
    assert ids(older) == [mine[2], mine[1]]
    last = get(guarded, "/requests", limit=2, before=mine[1])
    assert ids(last) == [mine[0]]
    assert last.json()["before"] is None


def test_another_owners_requests_are_absent(guarded: Served) -> None:
    request_id = submit(guarded.database, owner_of(KEY))
    assert get(guarded, f"/requests/{request_id}").status_code == 200
    unknown = get(guarded, f"/requests/{'0' * 8}-0000-0000-0000-{'0' * 12}", THEIRS)
    for reply in (
        get(guarded, f"/requests/{request_id}", THEIRS),
        get(guarded, "/requests", THEIRS, before=request_id),
    ):
        assert (reply.status_code, reply.json()) == (404, {"status": "NOT_FOUND"})
        assert reply.json() == unknown.json()
    assert ids(get(guarded, "/requests", THEIRS)) == []
    assert get(guarded, "/requests", {}).status_code == 401


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 101}, {"before": "x" * 65}])
def test_wrong_parameters(guarded: Served, params: dict[str, Any]) -> None:
    assert get(guarded, "/requests", **params).status_code == 422


def test_what_is_said_of_one(guarded: Served) -> None:
    request_id = submit(guarded.database, owner_of(KEY))
    do(guarded.database, lifecycle.advance, claimed(guarded.database), {})
    held = claimed(guarded.database, Stage.TRAIN)
    do(guarded.database, lifecycle.progress, held, progress={"step": 3, "of": 100})
    found = get(guarded, f"/requests/{request_id}").json()
    assert found["status"] == "IN_PROGRESS"
    assert found["endpoint"] == "fal-ai/ltx23-trainer-v2/t2v"
    assert (found["stage"], found["progress"]) == ("train", {"step": 3, "of": 100})
    assert found["finished_at"] is found["error"] is None
    assert get(guarded, found["status_url"].removeprefix(guarded.url)).status_code == 202
    do(guarded.database, lifecycle.fail, held, status=500, body={}, error="broken",
       error_type="internal_error", retryable=False)  # fmt: skip
    ended = get(guarded, "/requests").json()["requests"][0]
    assert (ended["status"], ended["error"]) == ("COMPLETED", "broken")
    assert ended["finished_at"] > ended["created_at"]
