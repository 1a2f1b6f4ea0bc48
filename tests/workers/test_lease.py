"""The lease keeper: renews in time, notices a loss, fences itself when cut off."""

import time
from collections.abc import Callable

import pytest
import structlog

from app.db.models import Stage
from app.requests.lifecycle import Claim, LeaseLost, RenewResult
from trainer.spec import Wish
from workers.lease import LeaseKeeper

CLAIM = Claim("r", "t", Stage.TRAIN, 1, 1, 3, "w", "o", "e", "m", {}, "p", None, False, False)


def eventually(condition: Callable[[], bool], within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_renews_until_left() -> None:
    renewals: list[float] = []

    def renew() -> RenewResult:
        renewals.append(time.monotonic())
        return RenewResult(cancel_requested=False)

    with LeaseKeeper(renew, lease_s=10, heartbeat_s=0.02) as lease:
        assert eventually(lambda: len(renewals) >= 3)
        assert not lease.lost
        assert not lease.cancel_requested
    count = len(renewals)
    time.sleep(0.1)
    assert len(renewals) == count


def test_its_thread_logs_as_the_attempt() -> None:
    seen: list[dict[str, object]] = []

    def renew() -> RenewResult:
        seen.append(structlog.contextvars.get_contextvars())
        return RenewResult(cancel_requested=False)

    with (
        structlog.contextvars.bound_contextvars(request_id="r", attempt=2),
        LeaseKeeper(renew, lease_s=10, heartbeat_s=0.02),
    ):
        assert eventually(lambda: bool(seen))
    assert seen[0] == {"request_id": "r", "attempt": 2}


def test_cancel_flag_is_passed_on() -> None:
    with LeaseKeeper(lambda: RenewResult(True), lease_s=10, heartbeat_s=0.02) as lease:
        assert eventually(lambda: lease.cancel_requested)
        assert not lease.lost


def test_wishes_are_passed_on() -> None:
    renewal = RenewResult(False, {Wish.SAVE: 1.0})
    with LeaseKeeper(lambda: renewal, lease_s=10, heartbeat_s=0.02) as lease:
        assert eventually(lambda: lease.wishes == {Wish.SAVE: 1.0})
        renewal = RenewResult(False)
        assert eventually(lambda: not lease.wishes)


def test_taken_away() -> None:
    def renew() -> RenewResult:
        raise LeaseLost(CLAIM)

    with LeaseKeeper(renew, lease_s=10, heartbeat_s=0.02) as lease:
        assert eventually(lambda: lease.lost)


def test_unreachable_database_survives_short_outages_only() -> None:
    failing = True
    calls = 0

    def renew() -> RenewResult:
        nonlocal calls
        calls += 1
        if failing:
            raise ConnectionError("away")
        return RenewResult(False)

    with LeaseKeeper(renew, lease_s=30, heartbeat_s=0.02) as lease:
        assert eventually(lambda: calls >= 3)
        assert not lease.lost
        failing = False
        assert eventually(lambda: calls >= 6)
        assert not lease.lost
    failing = True
    with LeaseKeeper(renew, lease_s=0.2, heartbeat_s=0.02) as lease:
        assert eventually(lambda: lease.lost)


def test_time_alone_loses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was stopped (SIGSTOP) sees the loss before its thread has run again."""
    lease = LeaseKeeper(lambda: RenewResult(False), lease_s=60, heartbeat_s=10)
    assert not lease.lost
    now = time.monotonic()
    monkeypatch.setattr("workers.lease.time.monotonic", lambda: now + 61)
    assert lease.lost
