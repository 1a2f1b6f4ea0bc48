"""Any order of submits, claims, losses, cancels and ends: one worker, forward only, a final end,
and never more running than an owner may."""

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sqlalchemy import func, select

from app.db.engine import Database
from app.db.models import Attempt, Priority, Purpose, Request, Stage, State
from app.requests import lifecycle, outbox, reaper, repository
from app.requests.lifecycle import Claim, LeaseLost
from tests.app.conftest import OWNER, emptied, put, row, submit
from tests.app.keys.conftest import make_key
from tests.app.test_lifecycle import WRITES

LIMIT = 3
MAX_RUNNING = 2
LATER = (Stage.PREPARE, Stage.TRAIN)


@dataclass
class Model:
    """What a request must look like."""

    id: str
    owner: str
    low: bool
    number: int
    check: bool = False
    state: State = State.QUEUED
    stage: Stage = Stage.PREPARE
    used: int = 0
    held: Claim | None = None
    cancelled: bool = False
    woken: bool = False
    end: dict[str, Any] = field(default_factory=dict)


class Requests(RuleBasedStateMachine):
    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.database = Database(self.fresh_url())
        self.limited = make_key(self.database, max_running=MAX_RUNNING).id
        self.owners = [OWNER, self.limited, "somebody else"]
        self.taken: dict[tuple[str, Stage], int] = {}
        self.models: dict[str, Model] = {}
        self.claims: list[Claim] = []

    def fresh_url(self) -> str:
        raise NotImplementedError

    def teardown(self) -> None:
        self.database.close()

    def do(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        with self.database.write() as session:
            return function(session, *args, **kwargs)

    def queued(self) -> list[Model]:
        found = [model for model in self.models.values() if model.state == State.QUEUED]
        return sorted(found, key=lambda model: (model.low, model.number))

    def following(
        self, queued: list[Model], stage: Stage, taken: dict[tuple[str, Stage], int]
    ) -> Model | None:
        """Whose turn it is."""
        return min(
            queued,
            key=lambda model: (model.low, taken.get((model.owner, stage), 0), model.number),
            default=None,
        )

    def ahead(self, model: Model) -> int:
        """How many get a worker before it, by giving one to each until it is its turn."""
        queued = [m for m in self.queued() if m.owner == model.owner or not self.full(m.owner)]
        taken = dict(self.taken)
        for served in range(len(queued)):
            following = self.following(queued, model.stage, taken)
            assert following is not None
            if following is model:
                return served
            queued.remove(following)
            taken[following.owner, model.stage] = 1_000_000 + served
        raise AssertionError("it is not in the queue")

    def full(self, owner: str) -> bool:
        running = [model for model in self.models.values() if model.held and model.owner == owner]
        return owner == self.limited and len(running) >= MAX_RUNNING

    def stops(self, model: Model) -> None:
        """It ran, and does no more: the next ones of a limited owner are woken."""
        if model.held and model.owner == self.limited:
            for stage in Stage:
                mine = (m for m in self.queued() if m.owner == model.owner and m.stage == stage)
                if (following := next(mine, None)) is not None:
                    following.woken = False
        model.held = None

    def back(self, model: Model) -> None:
        self.stops(model)
        model.state, model.woken = State.QUEUED, False
        if model.cancelled:
            self.ends(model)

    def ends(self, model: Model) -> None:
        self.stops(model)
        model.state = State.COMPLETED
        model.end = columns(self.database, model.id)

    @rule(low=st.booleans(), whose=st.integers(0, 2), check=st.booleans())
    def submit(self, low: bool, whose: int, check: bool) -> None:
        priority = Priority.LOW if low else Priority.NORMAL
        owner = self.owners[whose]
        purpose = Purpose.CHECK if check else Purpose.TRAIN
        request_id = submit(self.database, owner, priority=priority, purpose=purpose)
        self.models[request_id] = Model(request_id, owner, low, len(self.models), check)

    @rule(stage=st.sampled_from(LATER))
    def claim(self, stage: Stage) -> None:
        queued = [m for m in self.queued() if m.stage == stage and not self.full(m.owner)]
        expected = self.following(queued, stage, self.taken)
        found: Claim | None = self.do(lifecycle.claim, stage, "w", 60.0, LIMIT)
        assert (found and found.request_id) == (expected and expected.id)
        if expected is not None and found is not None:
            expected.state, expected.held = State.RUNNING, found
            self.taken[expected.owner, stage] = len(self.claims) + 1
            expected.used += 1
            assert found.attempts_used == expected.used <= LIMIT
            assert (found.purpose == Purpose.CHECK) == expected.check
            self.claims.append(found)

    @precondition(lambda self: any(model.held for model in self.models.values()))
    @rule(data=st.data(), write=st.sampled_from(sorted(WRITES)))
    def work(self, data: Any, write: str) -> None:
        owners = [model for model in self.models.values() if model.held]
        model = data.draw(st.sampled_from(owners))
        if model.check and write == "advance":
            before = columns(self.database, model.id)
            with pytest.raises(AssertionError, match="never trained"):
                self.do(WRITES[write], model.held)
            assert columns(self.database, model.id) == before
            return
        self.do(WRITES[write], model.held)
        if write == "release":
            model.used -= 1
            self.back(model)
        elif write == "advance":
            if not model.cancelled:
                model.stage, model.used = Stage.TRAIN, 0
            self.back(model)
        elif write == "prepare again":
            if not model.cancelled:
                model.stage, model.used = Stage.PREPARE, 0
            self.back(model)
        elif write == "fail for now" and model.used < LIMIT:
            self.back(model)
        elif write not in ("renew", "progress"):
            self.ends(model)

    def stale(self) -> list[Claim]:
        """Claims that were lost or ended; if there are, only of requests that others hold now."""
        models = self.models
        found = [held for held in self.claims if models[held.request_id].held != held]
        return [held for held in found if models[held.request_id].held] or found

    @precondition(lambda self: self.stale())
    @rule(data=st.data(), write=st.sampled_from(sorted(WRITES)))
    def stale_work(self, data: Any, write: str) -> None:
        held = data.draw(st.sampled_from(self.stale()))
        before = columns(self.database, held.request_id)
        with pytest.raises(LeaseLost):
            self.do(WRITES[write], held)
        assert columns(self.database, held.request_id) == before

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        model = data.draw(st.sampled_from(list(self.models.values())))
        answer = self.do(lifecycle.request_cancel, model.id, model.owner)
        if model.state == State.COMPLETED:
            assert answer == "ALREADY_COMPLETED"
            return
        assert answer == "CANCELLATION_REQUESTED"
        model.cancelled = True
        if model.state == State.QUEUED:
            self.ends(model)

    @precondition(lambda self: any(model.held for model in self.models.values()))
    @rule(data=st.data(), taken_over=st.booleans())
    def worker_dies(self, data: Any, taken_over: bool) -> None:
        model = data.draw(st.sampled_from([m for m in self.models.values() if m.held]))
        put(self.database, model.id, lease_expires_at=0.0)
        reaped = self.do(reaper.reap, LIMIT)
        if model.cancelled:
            assert reaped.cancelled == [model.id]
            self.ends(model)
        elif model.used >= LIMIT:
            assert reaped.dead == [model.id]
            self.ends(model)
        else:
            assert reaped.requeued == [model.id]
            self.back(model)
            if taken_over:
                self.claim(model.stage)

    @rule()
    def publish(self) -> None:
        due = [model for model in self.queued() if not model.woken]
        sent: list[str] = []
        assert outbox.publish_pending(self.database, sent.append) == len(due)
        # Queue by queue; a wake-up names no request.
        assert sorted(sent) == sorted(outbox.QUEUES[model.stage] for model in due)
        for model in due:
            model.woken = True

    @invariant()
    def the_rows_are_the_model(self) -> None:
        with self.database.read() as session:
            rows = session.scalars(select(Request)).all()
            assert {found.id for found in rows} == set(self.models)
            for found in rows:
                model = self.models[found.id]
                assert (found.state, found.stage) == (model.state, model.stage)
                assert found.attempts_used == model.used
                assert found.lease_token == (model.held.token if model.held else None)
                if model.state == State.QUEUED:
                    assert repository.position(session, found) == self.ahead(model)
            open_attempts = session.execute(
                select(Attempt.request_id, func.count())
                .where(Attempt.outcome.is_(None))
                .group_by(Attempt.request_id)
            ).all()
        running = {model.id for model in self.models.values() if model.held}
        assert {row[0]: row[1] for row in open_attempts} == dict.fromkeys(running, 1)

    @invariant()
    def a_check_is_never_trained(self) -> None:
        with self.database.read() as session:
            trained = session.scalars(
                select(Attempt.request_id).where(Attempt.stage == Stage.TRAIN)
            )
            assert not any(self.models[request_id].check for request_id in trained)

    @invariant()
    def the_end_is_final(self) -> None:
        for model in self.models.values():
            if model.state == State.COMPLETED:
                assert columns(self.database, model.id) == model.end


def columns(database: Database, request_id: str) -> dict[str, Any]:
    found = row(database, request_id)
    return {column.key: getattr(found, column.key) for column in found.__table__.columns}


STEPS = int(os.environ.get("REELSMITH_MACHINE_STEPS", "625"))
"""On each database, at most 25 from each beginning; `make nightly` asks for more."""

BOUNDED = settings(
    max_examples=STEPS // 25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_on_sqlite(migrated_sqlite: Path, tmp_path: Path) -> None:
    class OnSQLite(Requests):
        def fresh_url(self) -> str:
            path = Path(tempfile.mkdtemp(dir=tmp_path)) / "machine.db"
            shutil.copy(migrated_sqlite, path)
            return f"sqlite:///{path}"

    run(OnSQLite)


def test_on_postgresql(migrated_postgres: str) -> None:
    class OnPostgreSQL(Requests):
        def fresh_url(self) -> str:
            return emptied(migrated_postgres)

    run(OnPostgreSQL)


def run(machine: type[Requests]) -> None:
    case = machine.TestCase
    case.settings = BOUNDED
    case().runTest()
