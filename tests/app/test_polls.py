"""The short way of status polls answers what the long way answers."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.orm import Session

from app.db.engine import AsyncDatabase, Database
from app.requests import lifecycle
from app.requests.polls import StatusReader
from tests.app import conftest
from tests.app.conftest import Gateway
from tests.app.test_lifecycle import claimed, do

BODY = {"training_data_url": "https://example.com/a.zip"}
APP = "fal-ai/ltx23-trainer-v2"


def queued(gateway: Gateway) -> None:
    """As submitted."""


def running(gateway: Gateway) -> None:
    claimed(gateway.database)


def done(gateway: Gateway) -> None:
    do(gateway.database, lifecycle.complete, claimed(gateway.database), {"x": 1}, 100, 0.5)


def failed(gateway: Gateway) -> None:
    failure: dict[str, Any] = {"body": {"detail": "no"}, "error": "no", "error_type": "bad_request"}
    held = claimed(gateway.database)
    do(gateway.database, lifecycle.fail, held, status=422, retryable=False, **failure)


@pytest.mark.parametrize("become", [queued, running, done, failed])
def test_both_ways_say_the_same(gateway: Gateway, become: Callable[[Gateway], None]) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    gateway.client.post("/t2v", json=BODY)
    become(gateway)
    short = gateway.client.get(request["status_url"])
    long = gateway.client.get(request["status_url"], params={"logs": "1"})
    assert short.status_code == long.status_code
    assert short.json() == long.json() | {"logs": None}
    assert list(short.json()) == list(long.json())
    ours = {"content-length", "x-fal-request-id"}
    assert {k: v for k, v in short.headers.items() if k not in ours} == {
        k: v for k, v in long.headers.items() if k not in ours
    }
    assert short.headers["x-fal-request-id"] == request["request_id"]


PAGE = "https://pages.example"


@pytest.mark.parametrize(
    "headers",
    [{}, {"origin": PAGE}, {"origin": "https://other.example"}],
    ids=["no page", "a page that may ask", "another page"],
)
def test_pages_are_told_the_same(
    tmp_path: Path, migrated_sqlite: Path, headers: dict[str, str]
) -> None:
    with conftest.running(tmp_path, migrated_sqlite, cors_origins=(PAGE,)) as gateway:
        url = gateway.client.post("/t2v", json=BODY).json()["status_url"]
        short = gateway.client.get(url, headers=headers)
        long = gateway.client.get(url, params={"logs": "no"}, headers=headers)
    assert short.status_code == long.status_code
    ours = {"content-length", "x-fal-request-id"}
    assert {k: v for k, v in short.headers.multi_items() if k not in ours} == {
        k: v for k, v in long.headers.multi_items() if k not in ours
    }


def test_a_proxied_poll_is_one(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    direct = gateway.client.get(request["status_url"])
    target = f"https://queue.fal.run/{APP}/requests/{request['request_id']}/status?logs=0"
    proxied = gateway.client.get("/proxy", headers={"x-fal-target-url": target})
    assert proxied.json() == direct.json()
    assert sorted(proxied.headers.multi_items()) == sorted(direct.headers.multi_items())


def test_a_wrong_key_is_refused_as_ever(tmp_path: Path, migrated_sqlite: Path) -> None:
    with conftest.running(tmp_path, migrated_sqlite, api_keys=("one", "two")) as gateway:
        one, two = ({"authorization": f"Key {key}"} for key in ("one", "two"))
        url = gateway.client.post("/t2v", json=BODY, headers=one).json()["status_url"]
        answers = [gateway.client.get(url, headers=headers) for headers in (one, two, {})]
        assert [answer.status_code for answer in answers] == [202, 404, 401]


def test_the_second_of_two_has_one_before_it(gateway: Gateway) -> None:
    first, second = (gateway.client.post("/t2v", json=BODY).json() for _ in range(2))
    positions = [
        gateway.client.get(r["status_url"]).json()["queue_position"] for r in (first, second)
    ]
    assert positions == [0, 1]


def test_another_apps_url_finds_nothing(gateway: Gateway) -> None:
    request = gateway.client.post("/t2v", json=BODY).json()
    for path in (f"/{APP}-x/requests/{request['request_id']}/status", "/t2v/requests/x/status"):
        assert gateway.client.get(path).status_code == 404


def test_polls_that_wait_share_a_query(database_url: str, database: Database) -> None:
    """While one question is out, everybody else waits for the next one, together."""

    async def story() -> list[int]:
        asked: list[int] = []
        go_on = threading.Event()

        class Counted(AsyncDatabase):
            async def read(self, function: Any, *args: Any, **kwargs: Any) -> Any:
                def slow(session: Session) -> Any:
                    go_on.wait(10)
                    return function(session, *args)

                asked.append(len(args[0]))
                return await super().read(slow)

        counted = Counted(database_url)
        reader = StatusReader(counted)
        first = asyncio.create_task(reader.find("a"))
        while not asked:
            await asyncio.sleep(0)
        others = [asyncio.create_task(reader.find(name)) for name in ("b", "c", "b")]
        await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.gather(first, *others) == [None] * 4
        await counted.close()
        return asked

    assert asyncio.run(story()) == [1, 2]
