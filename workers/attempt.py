"""One attempt at one stage of one request, from the claim to its end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app import modes
from app.db.models import Stage, State
from app.metrics.counts import ATTEMPTS, LEASE_LOSSES, QUEUE_WAIT, RETRIES
from app.modes.base import AnyGeneration, AnyMode, AnyTraining, Generation, Training
from app.requests import lifecycle
from app.requests.lifecycle import Claim, LeaseLost
from preprocessing.failpoints import reach
from trainer.spec import Wish
from workers.failures import Failure, unforeseen
from workers.forward import Forwarder
from workers.lease import LeaseKeeper
from workers.runtime import Runtime
from workers.workdir import work_dir

log = structlog.get_logger()

T = TypeVar("T")

DATABASE_PAUSE_S: Final = 1.0
"""Between two tries to reach the database."""


class Cancelled(Exception):
    """Its user wants it to end."""


class Released(Exception):
    """This worker was asked to stop; somebody else goes on."""


class PreparedGone(Exception):
    """The store no longer has what the prepare stage made."""


@dataclass
class Attempt:
    """What a stage's code works with. `check` is called often, wherever stopping is safe."""

    runtime: Runtime
    claim: Claim
    lease: LeaseKeeper
    forward: Forwarder
    folder: Path
    mode: AnyMode
    request: Any
    """An instance of the mode's request model."""
    started: float = field(default_factory=time.monotonic)

    @property
    def request_id(self) -> str:
        return self.claim.request_id

    @property
    def training(self) -> AnyTraining:
        """The mode, where `workers.stages` has found it to be one."""
        assert isinstance(self.mode, Training)
        return self.mode

    @property
    def generation(self) -> AnyGeneration:
        """The same for generations."""
        assert isinstance(self.mode, Generation)
        return self.mode

    def key(self, *parts: str) -> str:
        """A storage key below this request's own prefix."""
        return "/".join((self.claim.storage_prefix, *parts))

    @property
    def cancel_requested(self) -> bool:
        return self.lease.cancel_requested or self.forward.cancel_requested

    @property
    def wishes(self) -> dict[Wish, float]:
        """What its user asked for, with the newest time that is known of each; perhaps granted by
        now."""
        known = [*self.lease.wishes.items(), *self.forward.wishes.items()]
        return dict(sorted(known, key=lambda wish: wish[1]))

    def write(self, change: Callable[[Session], T]) -> T:
        """Make a change to the request in one transaction, waiting for a database that is away.

        A finished training must not be lost to a restart of the database. Raises `LeaseLost`.
        """
        while True:
            try:
                with self.runtime.database.write() as session:
                    return change(session)
            except OperationalError as error:
                log.warning("database.away", error=str(error))
                if self.lease.lost:
                    raise LeaseLost(self.claim) from error
                time.sleep(DATABASE_PAUSE_S)

    def check(self) -> None:
        """Raises `LeaseLost`, `Cancelled` or `Released` when this attempt should end."""
        if self.lease.lost:
            raise LeaseLost(self.claim)
        if self.cancel_requested:
            raise Cancelled
        if self.runtime.stopping():
            raise Released


Work = Callable[[Attempt], None]
"""Does a stage and ends it (`advance`, `complete`), or raises."""


def attempt_next(runtime: Runtime, stage: Stage, work: Work) -> bool:
    """Claim the next request of ``stage`` and do it. False: there was none.

    Whatever happens, the request is either ended, queued again, or left with a lease that runs out.
    """
    reach("worker.woken")
    with runtime.database.write() as session:
        claim = lifecycle.claim(
            session,
            stage,
            runtime.worker,
            runtime.settings.lease_s,
            runtime.settings.attempts_limit,
        )
    if claim is None:
        return False
    reach("worker.claimed")
    with structlog.contextvars.bound_contextvars(
        request_id=claim.request_id, attempt=claim.attempt, stage=claim.stage.value
    ):
        log.info("attempt.started")
        if claim.waited_s is not None:
            QUEUE_WAIT.labels(claim.stage.value).observe(claim.waited_s)
        try:
            _attempt(runtime, claim, work)
        except LeaseLost:
            LEASE_LOSSES.labels(claim.stage.value).inc()
            ATTEMPTS.labels(claim.stage.value, "lease_lost").inc()
            log.warning("attempt.lease_lost")
        if not runtime.stopping():  # else it would wake itself; the gateway does it in a moment
            runtime.publish()
    return True


def _attempt(runtime: Runtime, claim: Claim, work: Work) -> None:
    label = f"{claim.request_id}-{claim.attempt}"
    with runtime.keep_lease(claim) as lease, work_dir(runtime.work_root, label) as folder:
        forward = Forwarder(runtime.database, claim, claim.stage.value)
        mode = modes.by_path(claim.mode)
        attempt = Attempt(runtime, claim, lease, forward, folder, mode, mode.parse(claim.input))
        ended = partial(_ended, claim)
        try:
            attempt.check()
            work(attempt)
            ended("done")
        except Cancelled:
            forward.feed((), at_once=True)
            attempt.write(lambda session: lifecycle.cancelled(session, claim))
            ended("cancelled")
            log.info("attempt.cancelled")
        except Released:
            forward.feed((), at_once=True)
            _release(attempt, "the worker is being stopped", "released")
        except PreparedGone:
            forward.feed((), at_once=True)
            attempt.write(lambda session: lifecycle.prepare_again(session, claim))
            ended("prepared_gone")
            log.warning("attempt.prepared_gone")
        except Failure as failure:
            _fail(attempt, failure)
        except LeaseLost:
            raise
        except Exception as error:
            log.exception("attempt.crashed")
            _fail(attempt, unforeseen(error))


def _release(attempt: Attempt, reason: str, outcome: str) -> None:
    attempt.write(lambda session: lifecycle.release(session, attempt.claim, reason))
    _ended(attempt.claim, outcome)
    log.info("attempt.released", reason=reason)


def _fail(attempt: Attempt, failure: Failure) -> None:
    attempt.forward.feed((), at_once=True)
    on_gpu = attempt.claim.stage is Stage.TRAIN
    if on_gpu and failure.retryable and not attempt.runtime.can_work():
        # Not the request's fault, and no attempt of it: the same would happen to every one.
        _release(attempt, "this worker's model or GPU is away", "unfit")
        return
    state = attempt.write(
        lambda session: lifecycle.fail(
            session,
            attempt.claim,
            status=failure.status,
            body=failure.body,
            error=failure.error,
            error_type=failure.error_type,
            retryable=failure.retryable,
        )
    )
    again = state == State.QUEUED
    _ended(attempt.claim, "retried" if again else "failed")
    if again:
        RETRIES.labels(attempt.claim.stage.value, failure.error_type).inc()
    log.warning("attempt.failed", error=failure.error, state=str(state))


def _ended(claim: Claim, outcome: str) -> None:
    ATTEMPTS.labels(claim.stage.value, outcome).inc()
