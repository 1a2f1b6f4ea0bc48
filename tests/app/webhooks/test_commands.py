"""`reelsmith webhooks`."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import main
from app.db.engine import Database
from app.storage import Storage
from app.webhooks.deliveries import Busy, claim
from tests.app.conftest import put, row, submit
from tests.app.test_lifecycle import do
from tests.app.webhooks.conftest import AT_ONCE, cancel, once, pending, policy, with_deliverers
from tests.app.webhooks.receiver import Receiver, status

Reelsmith = Callable[..., Result]


@pytest.fixture
def reelsmith(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.setenv("REELSMITH_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REELSMITH_DATABASE_URL", database_url)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(main, ["webhooks", *arguments])

    return run


def test_list_tells_how_far_each_is(
    reelsmith: Reelsmith,
    database: Database,
    database_url: str,
    storage: Storage,
    receiver: Receiver,
) -> None:
    receiver.answers = [status(200), status(302), status(500)]
    url = f"{receiver.url}?token=secret"
    ids = [cancel(database, url) for _ in range(3)]
    for request_id in ids[1:]:
        put(database, request_id, webhook_next_at=1e12)
    for request_id in ids:
        put(database, request_id, webhook_next_at=0.0)
        with_deliverers(database_url, storage, policy(receiver), once)
    put(database, ids[2], webhook_next_at=1e9)
    ids.append(cancel(database, url))
    do(database, claim, AT_ONCE, Busy(owners=()), 1)  # the third's second attempt
    ids.append(submit(database, webhook_url=url))
    cancel(database, None)
    said = reelsmith("list").output
    assert "secret" not in said
    states = [line.split("  ") for line in said.splitlines()]
    assert [state[0] for state in states] == ids[::-1]
    waiting, fresh, failing, refused, delivered = (state[1] for state in states)
    assert waiting == "waits for the request's end"
    assert fresh.startswith("attempt 1 due at ")
    assert failing.startswith("attempt 2 under way")
    assert (refused, delivered) == ("given up", "delivered")


def test_list_shows_the_attempts_of_one(
    reelsmith: Reelsmith,
    database: Database,
    database_url: str,
    storage: Storage,
    receiver: Receiver,
) -> None:
    receiver.answers = [status(500), status(200)]
    request_id = cancel(database, receiver.url)
    cancel(database, "https://example.com/other")
    for _ in range(2):
        with_deliverers(database_url, storage, policy(receiver), once)
    lines = reelsmith("list", request_id).output.splitlines()
    assert len(lines) == 3
    assert "the receiver answers 500 after " in lines[1]
    assert "delivered after " in lines[2]


def test_redeliver_sends_it_again(
    reelsmith: Reelsmith,
    database: Database,
    database_url: str,
    storage: Storage,
    receiver: Receiver,
) -> None:
    request_id = cancel(database, receiver.url)
    with_deliverers(database_url, storage, policy(receiver), once)
    assert reelsmith("redeliver", request_id).exit_code == 0
    assert pending(database, request_id)
    with_deliverers(database_url, storage, policy(receiver), once)
    assert [got.json["request_id"] for got in receiver.received] == [request_id] * 2
    assert row(database, request_id).webhook_tries == 1


def test_redeliver_says_why_not(reelsmith: Reelsmith, database: Database) -> None:
    url = "https://example.com/hook"
    expired = cancel(database, url)
    put(database, expired, expired_at=1.0, webhook_next_at=None)
    for request_id, says in (
        ("nobody", "no request"),
        (cancel(database, None), "without a webhook"),
        (submit(database, webhook_url=url), "has not ended"),
        (expired, "has expired"),
    ):
        result = reelsmith("redeliver", request_id)
        assert result.exit_code == 1
        assert says in result.output
    assert reelsmith("list", "nobody").exit_code == 1


def test_keys_and_rotation(reelsmith: Reelsmith, database: Database) -> None:
    assert "no key yet" in reelsmith("keys").output
    assert reelsmith("rotate").output.startswith("key 1 signs from ")
    assert reelsmith("rotate").output.startswith("key 2 signs from ")
    assert reelsmith("rotate").exit_code == 1
    first, second = reelsmith("keys").output.splitlines()
    assert first.startswith("1  ")
    assert first.endswith("(signs now)")
    assert second.startswith("2  ")
    assert "until" not in second
    assert reelsmith("rotate", "--leaked").output.startswith("key 3 signs from ")
    (only,) = reelsmith("keys").output.splitlines()
    assert only.endswith("(signs now)")
