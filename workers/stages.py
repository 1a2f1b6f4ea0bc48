"""What a stage means for a training and for a generation: the one place that tells them apart."""

from app.db.models import Stage
from app.modes.base import Generation, Training
from workers import generate, prepare, prepare_generation, train
from workers.attempt import Attempt, attempt_next
from workers.runtime import Runtime


def prepare_next(runtime: Runtime) -> bool:
    """Prepare the next queued request. False: there was none."""
    return attempt_next(runtime, Stage.PREPARE, _prepare)


def work_next(runtime: Runtime) -> bool:
    """Train or generate the next prepared request. False: there was none."""
    return attempt_next(runtime, Stage.TRAIN, _work)


def _prepare(attempt: Attempt) -> None:
    match attempt.mode:
        case Training():
            prepare.prepare(attempt)
        case Generation():
            prepare_generation.prepare(attempt)


def _work(attempt: Attempt) -> None:
    match attempt.mode:
        case Training():
            train.train(attempt)
        case Generation():
            generate.generate(attempt)
