"""Whose fault a failure on the GPU is: the request's, or that of a machine without its model."""

from pathlib import Path

from app.db.models import Stage, State
from app.requests import lifecycle
from tests.app.conftest import row, submit
from tests.app.test_lifecycle import claimed, do
from workers.attempt import Attempt, attempt_next
from workers.failures import our_fault
from workers.runtime import Runtime


def test_a_trainer_that_lives_shows_that_the_machine_can_work(
    runtime: Runtime, tmp_path: Path
) -> None:
    """Its memory may leave no room for another process that tries the GPU."""
    settings = runtime.settings.model_copy(update={"model": str(tmp_path / "gone")})
    runtime = Runtime(settings)
    request = submit(runtime.database)
    do(runtime.database, lifecycle.advance, claimed(runtime.database), {"key": "prepared/x"})

    def fails(attempt: Attempt) -> None:
        raise our_fault("The store is away.")

    def used() -> tuple[str, int]:
        found = row(runtime.database, request)
        return found.state, found.attempts_used

    before = used()
    assert attempt_next(runtime, Stage.TRAIN, fails)
    assert used() == before, "given back"
    runtime.live_trainer()
    try:
        assert attempt_next(runtime, Stage.TRAIN, fails)
    finally:
        runtime.drop_trainer()
    assert used() == (State.QUEUED, before[1] + 1)
    runtime.database.close()
