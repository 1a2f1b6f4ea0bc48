"""Who may write what and when: claims, fencing, budgets, cancels, the reaper."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.engine import Database
from app.db.models import Attempt, Event, LogLine, Stage, State
from app.errors import NotTraining, UnknownRequest
from app.requests import lifecycle, reaper, repository
from app.requests.lifecycle import Claim, Happened, LeaseLost, Log
from tests.app.conftest import LOW, OWNER, put, row, submit
from trainer.spec import Wish

FAILURE: dict[str, Any] = {
    "status": 500,
    "body": {"detail": "no"},
    "error": "no",
    "error_type": "internal_server_error",
}


def claim(database: Database, stage: Stage = Stage.PREPARE, **options: Any) -> Claim | None:
    with database.write() as session:
        return lifecycle.claim(session, stage, "worker", **options)


def claimed(database: Database, stage: Stage = Stage.PREPARE, **options: Any) -> Claim:
    """A claim that must be had. It passes over a row that is locked, such as by the outbox of a
    gateway that runs; a worker asks again, too."""
    for _ in range(100):
        if found := claim(database, stage, **options):
            return found
        time.sleep(0.1)
    raise AssertionError("no claim in 10 s")


def do(database: Database, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with database.write() as session:
        return function(session, *args, **kwargs)


def expire(database: Database, held: Claim) -> None:
    put(database, held.request_id, lease_expires_at=0.0)


def outcomes(database: Database, request_id: str) -> list[str | None]:
    with database.read() as session:
        return list(
            session.scalars(
                select(Attempt.outcome)
                .where(Attempt.request_id == request_id)
                .order_by(Attempt.number)
            )
        )


def messages(database: Database, request_id: str) -> list[str]:
    with database.read() as session:
        return [line.message for line in repository.log_lines(session, request_id)]


WRITES: dict[str, Callable[[Session, Claim], object]] = {
    "renew": lifecycle.renew,
    "progress": lambda s, c: lifecycle.progress(
        s, c, progress={"step": 9}, logs=[Log("x")], events=[Happened("step")]
    ),
    "advance": lambda s, c: lifecycle.advance(s, c, {"key": "x"}),
    "release": lambda s, c: lifecycle.release(s, c, "stopping"),
    "complete": lambda s, c: lifecycle.complete(s, c, {"x": 1}, 100, 1.0),
    "fail for good": lambda s, c: lifecycle.fail(s, c, **FAILURE, retryable=False),
    "fail for now": lambda s, c: lifecycle.fail(s, c, **FAILURE, retryable=True),
    "cancelled": lifecycle.cancelled,
    "prepare again": lifecycle.prepare_again,
}
"""Every write that a worker can make."""


def test_the_whole_way(database: Database) -> None:
    request_id = submit(database)
    prepare = claimed(database)
    assert (prepare.request_id, prepare.attempt, prepare.attempts_used) == (request_id, 1, 1)
    assert prepare.input == {"training_data_url": "https://example.com/a.zip"}
    assert row(database, request_id).state == State.RUNNING
    do(database, lifecycle.advance, prepare, {"key": "prepared/x.tar"})
    assert (row(database, request_id).state, row(database, request_id).stage) == (
        State.QUEUED,
        Stage.TRAIN,
    )
    assert claim(database, Stage.PREPARE) is None
    train = claimed(database, Stage.TRAIN)
    assert (train.attempt, train.attempts_used) == (2, 1)
    assert train.prepared == {"key": "prepared/x.tar"}
    assert train.storage_prefix == prepare.storage_prefix
    do(database, lifecycle.complete, train, {"lora_file": {"key": "k"}}, 300, 12.5)
    done = row(database, request_id)
    assert (done.state, done.result_status, done.billable_units) == (State.COMPLETED, 200, 300)
    assert (done.result_body, done.inference_time) == ({"lora_file": {"key": "k"}}, 12.5)
    assert done.created_at <= (done.started_at or 0) <= (done.finished_at or 0)
    assert (done.lease_token, done.lease_expires_at, done.worker) == (None, None, None)
    assert outcomes(database, request_id) == ["advanced", "completed"]


def test_nothing_to_claim(database: Database) -> None:
    assert claim(database) is None
    submit(database)
    assert claim(database, Stage.TRAIN) is None


def test_normal_before_low_then_the_oldest(database: Database) -> None:
    low = submit(database, **LOW)
    first, second = submit(database), submit(database)
    assert [claimed(database).request_id for _ in range(3)] == [first, second, low]


def test_the_clock_is_the_databases(database: Database) -> None:
    with database.read() as session:
        assert abs(session.scalars(select(db_now())).one() - time.time()) < 60
    request_id = submit(database, start_timeout_s=30.0)
    found = row(database, request_id)
    assert found.start_deadline == pytest.approx(found.created_at + 30, abs=1)
    claimed(database, lease_s=60)
    assert row(database, request_id).lease_expires_at == pytest.approx(time.time() + 60, abs=30)


def test_prefixes_hold_128_random_bits(database: Database) -> None:
    prefixes = {row(database, submit(database)).storage_prefix for _ in range(3)}
    assert len({prefix.rsplit("-", 1)[1] for prefix in prefixes}) == 3
    assert all(len(prefix.rsplit("-", 1)[1]) == 32 for prefix in prefixes)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("how", ["requeued", "claimed again", "completed"])
def test_a_stale_token_writes_nothing(
    database: Database, write: Callable[[Session, Claim], object], how: str
) -> None:
    request_id = submit(database)
    stale = claimed(database)
    expire(database, stale)
    do(database, reaper.reap)
    if how != "requeued":
        second = claimed(database)
        if how == "completed":
            do(database, lifecycle.complete, second, {"by": "second"}, 100, 1.0)
    before = state_of(database, request_id)
    with pytest.raises(LeaseLost, match=request_id):
        do(database, write, stale)
    assert state_of(database, request_id) == before


def state_of(database: Database, request_id: str) -> object:
    """Everything stored about a request."""
    with database.read() as session:
        tables = [
            session.execute(select(table).where(column == request_id)).all()
            for table, column in (
                (Attempt.__table__, Attempt.request_id),
                (LogLine.__table__, LogLine.request_id),
                (Event.__table__, Event.request_id),
            )
        ]
    found = row(database, request_id)
    columns = {column.key: getattr(found, column.key) for column in found.__table__.columns}
    return columns, tables


def test_a_half_done_transaction_leaves_nothing(database: Database) -> None:
    request_id = submit(database)
    held = claimed(database)
    before = state_of(database, request_id)

    def complete_and_crash(session: Session) -> None:
        lifecycle.complete(session, held, {"x": 1}, 100, 1.0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        do(database, complete_and_crash)
    assert state_of(database, request_id) == before


def test_renewing_moves_the_end_of_the_lease(database: Database) -> None:
    request_id = submit(database)
    held = claimed(database, lease_s=5)
    before = row(database, request_id).lease_expires_at or 0
    assert do(database, lifecycle.renew, held, 500.0).cancel_requested is False
    assert (row(database, request_id).lease_expires_at or 0) > before + 400
    assert not do(database, reaper.reap)


def test_progress_is_kept_and_cleaned(database: Database) -> None:
    request_id = submit(database)
    held = claimed(database)
    do(
        database,
        lifecycle.progress,
        held,
        progress={"step": 3, "loss": float("nan")},
        logs=[Log("a\x00b\ud800", "WARN"), Log("y" * 10_000, ts=5.0)],
        events=[Happened("step", {"step": 3, "loss": float("inf")}), Happened("stage")],
    )
    do(database, lifecycle.progress, held, logs=[Log("later")])
    assert row(database, request_id).progress == {"step": 3, "loss": None}
    with database.read() as session:
        lines = repository.log_lines(session, request_id)
        assert [line.message[:6] for line in lines] == ["ab?", "yyyyyy", "later"]
        assert len(lines[1].message) == lifecycle.MAX_LOG_CHARACTERS
        assert lines[1].ts == 5.0
        events = repository.events(session, request_id, 0)
        assert [(event.kind, event.data) for event in events] == [
            ("step", {"step": 3, "loss": None}),
            ("stage", {}),
        ]
        assert list(repository.events(session, request_id, events[0].id)) == [events[1]]


def test_released_attempts_do_not_count(database: Database) -> None:
    request_id = submit(database)
    for number in range(1, 6):
        held = claimed(database)
        assert (held.attempt, held.attempts_used) == (number, 1)
        assert do(database, lifecycle.release, held, "stopping") == State.QUEUED
    assert outcomes(database, request_id) == ["released"] * 5


def test_lost_attempts_count_and_the_third_is_the_end(database: Database) -> None:
    request_id = submit(database)
    other = submit(database)
    for _ in range(2):
        expire(database, claimed(database))
        assert do(database, reaper.reap).requeued == [request_id]
    expire(database, claimed(database))
    assert do(database, reaper.reap).dead == [request_id]
    dead = row(database, request_id)
    assert (dead.state, dead.result_status, dead.billable_units) == (State.COMPLETED, 500, 0)
    assert dead.error_type == "runner_server_error"
    assert dead.result_body == {"detail": dead.error, "error_type": "runner_server_error"}
    assert "3 of 3 attempts" in (dead.error or "")
    assert outcomes(database, request_id) == ["lost"] * 3
    assert claimed(database).request_id == other


def test_each_stage_has_its_own_budget(database: Database) -> None:
    submit(database)
    for _ in range(2):
        expire(database, claimed(database))
        do(database, reaper.reap)
    do(database, lifecycle.advance, claimed(database), {})
    train = claimed(database, Stage.TRAIN)
    assert (train.attempt, train.attempts_used) == (4, 1)


def test_a_limit_that_was_lowered_strands_nobody(database: Database) -> None:
    request_id = submit(database)
    for _ in range(2):
        expire(database, claimed(database))
        do(database, reaper.reap)
    assert claim(database, attempts_limit=2) is None
    assert do(database, reaper.reap, 2).dead == [request_id]
    assert row(database, request_id).result_status == 500


def test_what_was_prepared_and_is_gone_is_prepared_again(database: Database) -> None:
    request_id = submit(database)
    do(database, lifecycle.advance, claimed(database), {"key": "x"})
    train = claimed(database, Stage.TRAIN)
    assert do(database, lifecycle.prepare_again, train) == State.QUEUED
    again = claimed(database)
    assert (again.request_id, again.prepared, again.attempts_used) == (request_id, None, 1)
    assert outcomes(database, request_id) == ["advanced", "released", None]


@pytest.mark.parametrize("attempts_limit", [1, 2, 3])
def test_retryable_failures_are_tried_again_within_the_limit(
    database: Database, attempts_limit: int
) -> None:
    request_id = submit(database)
    states = []
    for _ in range(attempts_limit):
        held = claimed(database, attempts_limit=attempts_limit)
        states.append(do(database, lifecycle.fail, held, **FAILURE, retryable=True))
    assert states == [State.QUEUED] * (attempts_limit - 1) + [State.COMPLETED]
    assert claim(database) is None
    assert outcomes(database, request_id) == ["retried"] * (attempts_limit - 1) + ["failed"]
    assert row(database, request_id).error == "no"


@pytest.mark.parametrize("end", ["fails", "is lost"])
def test_no_retry_means_one_attempt(database: Database, end: str) -> None:
    request_id = submit(database, no_retry=True)
    held = claimed(database)
    if end == "fails":
        do(database, lifecycle.fail, held, **FAILURE, retryable=True)
    else:
        expire(database, held)
        do(database, reaper.reap)
    assert row(database, request_id).state == State.COMPLETED


def test_a_users_fault_ends_at_once(database: Database) -> None:
    request_id = submit(database)
    body = {"detail": [{"loc": ["body", "training_data_url"], "msg": "bad", "type": "x"}]}
    do(
        database,
        lifecycle.fail,
        claimed(database),
        status=422,
        body=body,
        error="bad",
        error_type="invalid_archive",
        retryable=False,
    )
    failed = row(database, request_id)
    assert (failed.result_status, failed.result_body, failed.billable_units) == (422, body, 0)
    assert messages(database, request_id) == ["bad"]


def test_cancel_while_queued(database: Database) -> None:
    request_id = submit(database)
    assert do(database, lifecycle.request_cancel, request_id, OWNER) == "CANCELLATION_REQUESTED"
    ended = row(database, request_id)
    assert (ended.state, ended.result_status) == (State.COMPLETED, 499)
    assert ended.error_type == "client_cancelled"
    assert claim(database) is None
    assert do(database, lifecycle.request_cancel, request_id, OWNER) == "ALREADY_COMPLETED"


def test_cancel_while_running(database: Database) -> None:
    request_id = submit(database)
    held = claimed(database)
    assert do(database, lifecycle.request_cancel, request_id, OWNER) == "CANCELLATION_REQUESTED"
    asked_at = row(database, request_id).cancel_requested_at
    assert do(database, lifecycle.request_cancel, request_id, OWNER) == "CANCELLATION_REQUESTED"
    assert row(database, request_id).cancel_requested_at == asked_at
    assert do(database, lifecycle.renew, held).cancel_requested
    assert do(database, lifecycle.progress, held).cancel_requested
    do(database, lifecycle.cancelled, held)
    assert row(database, request_id).result_status == 499
    assert outcomes(database, request_id) == ["cancelled"]


@pytest.mark.parametrize(
    "write",
    [WRITES[name] for name in ("advance", "release", "fail for now")],
    ids=["advance", "release", "fail for now"],
)
def test_cancel_wins_over_going_on(
    database: Database, write: Callable[[Session, Claim], object]
) -> None:
    request_id = submit(database)
    held = claimed(database)
    do(database, lifecycle.request_cancel, request_id, OWNER)
    assert do(database, write, held) == State.COMPLETED
    assert row(database, request_id).error_type == "client_cancelled"


def test_a_finished_training_wins_over_a_cancel(database: Database) -> None:
    request_id = submit(database)
    held = claimed(database)
    do(database, lifecycle.request_cancel, request_id, OWNER)
    do(database, lifecycle.complete, held, {"x": 1}, 100, 1.0)
    assert row(database, request_id).result_status == 200


@pytest.mark.parametrize("request_id", ["missing", "another owner's"])
def test_cancel_of_what_one_does_not_own(database: Database, request_id: str) -> None:
    mine = submit(database)
    asked, owner = ("no such id", OWNER) if request_id == "missing" else (mine, "somebody else")
    assert do(database, lifecycle.request_cancel, asked, owner) == "NOT_FOUND"
    assert row(database, mine).cancel_requested_at is None


def training(database: Database) -> Claim:
    """Held by a worker in its training stage."""
    submit(database)
    do(database, lifecycle.advance, claimed(database), {"key": "x"})
    return claimed(database, Stage.TRAIN)


@pytest.mark.parametrize("wish", Wish)
def test_a_wish_waits_until_it_is_granted(database: Database, wish: Wish) -> None:
    held = training(database)
    since = do(database, lifecycle.request_wish, held.request_id, OWNER, wish)
    assert do(database, lifecycle.request_wish, held.request_id, OWNER, wish) == since
    assert len([m for m in messages(database, held.request_id) if "asked for" in m]) == 1
    assert do(database, lifecycle.renew, held).wishes == {wish: since}
    do(database, lifecycle.release, held, "stopping")
    again = claimed(database, Stage.TRAIN)
    assert do(database, lifecycle.progress, again).wishes == {wish: since}, "for the next attempt"
    assert do(database, lifecycle.progress, again, granted=[wish]).wishes == {}
    assert do(database, lifecycle.request_wish, held.request_id, OWNER, wish) > since


@pytest.mark.parametrize("how", ["complete", "fail for good", "cancelled"])
def test_a_wish_that_is_left_is_dropped(database: Database, how: str) -> None:
    held = training(database)
    do(database, lifecycle.request_wish, held.request_id, OWNER, Wish.SAVE)
    do(database, WRITES[how], held)
    assert lifecycle.wishes_of(row(database, held.request_id)) == {}
    assert "It ended before the save that was asked for." in messages(database, held.request_id)


def test_only_a_running_training_has_wishes(database: Database) -> None:
    def refused(error: type[Exception], words: str, owner: str = OWNER) -> None:
        with pytest.raises(error, match=words):
            do(database, lifecycle.request_wish, request_id, owner, Wish.SAVE)

    request_id = submit(database)
    refused(NotTraining, "not training yet")
    prepare = claimed(database)
    refused(NotTraining, "not training yet")
    do(database, lifecycle.advance, prepare, {"key": "x"})
    refused(NotTraining, "not training yet")
    held = claimed(database, Stage.TRAIN)
    refused(UnknownRequest, "not found", owner="somebody else")
    do(database, lifecycle.progress, held, progress={"step": 9, "of": 9})
    refused(NotTraining, "last step")
    do(database, lifecycle.progress, held, progress={"step": 8, "of": 9})
    do(database, lifecycle.request_cancel, request_id, OWNER)
    refused(NotTraining, "being cancelled")
    do(database, lifecycle.cancelled, held)
    refused(NotTraining, "has ended")


def test_reaper_ends_a_cancelled_request_whose_worker_is_gone(database: Database) -> None:
    request_id = submit(database)
    expire(database, claimed(database))
    do(database, lifecycle.request_cancel, request_id, OWNER)
    assert do(database, reaper.reap).cancelled == [request_id]
    assert row(database, request_id).result_status == 499


def test_reaper_leaves_living_leases_and_waiting_requests_alone(database: Database) -> None:
    submit(database)
    submit(database)
    claimed(database)
    assert not do(database, reaper.reap)


def test_start_deadline(database: Database) -> None:
    late = submit(database, start_timeout_s=-1.0)
    assert claim(database) is None
    assert do(database, reaper.reap).timed_out == [late]
    ended = row(database, late)
    assert (ended.result_status, ended.error_type) == (504, "request_timeout")
    assert ended.started_at is None


def test_start_deadline_binds_only_until_the_first_start(database: Database) -> None:
    request_id = submit(database, start_timeout_s=1000.0)
    held = claimed(database)
    put(database, request_id, start_deadline=1.0)
    do(database, lifecycle.advance, held, {})
    assert not do(database, reaper.reap)
    assert claimed(database, Stage.TRAIN).request_id == request_id


def test_concurrent_claims_get_different_requests(database: Database) -> None:
    ids = {submit(database) for _ in range(12)}
    found: list[str] = []
    start = threading.Barrier(4)

    def work() -> None:
        start.wait()
        while (held := claim(database)) is not None:
            found.append(held.request_id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 12
    assert set(found) == ids


def test_concurrent_reapers_reap_once(database: Database) -> None:
    ids = {submit(database) for _ in range(8)}
    for _ in ids:
        expire(database, claimed(database))
    reaped: list[str] = []
    start = threading.Barrier(3)

    def work() -> None:
        start.wait()
        reaped.extend(do(database, reaper.reap).requeued)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(reaped) == sorted(ids)
