"""What trainings and generations share on the GPU: the trainer child, watched to its end."""

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, Protocol

import structlog

from app.requests import lifecycle
from app.requests.lifecycle import LeaseLost
from preprocessing.failpoints import reach
from trainer.job import Control, JobDir, Result
from trainer.spec import Wish
from workers.attempt import Attempt, Cancelled, Released
from workers.children import POLL_S, TrainerProcess
from workers.failures import our_fault, users_fault
from workers.files import file_entry, put_patiently

log = structlog.get_logger()

STOP_TIMEOUT_S: Final = 120.0
"""For a trainer that was told to stop: a step, a checkpoint and some air; then it is killed."""

Output = tuple[str, str, str]
"""Field of the result, attribute of `JobDir`, content type."""


class Events(Protocol):
    """The child's events on their way to the database."""

    def forward(self) -> None:
        """Take along what is new since the last call."""

    @property
    def worth_saving(self) -> bool:
        """Whether the child has done what another attempt could go on from, if it were saved."""


def supervise(attempt: Attempt, job_dir: JobDir, events: Events) -> Result | None:
    """Wait for the trainer, forwarding events. None: it answered, but left no result.

    A lost lease kills the trainer at once; a cancel or a stop of this worker is told to it, so
    that it saves a checkpoint first. One that has nothing to save is not waited for when the worker
    stops: loading the model takes minutes, and no word reaches it meanwhile.
    """
    trainer = attempt.runtime.live_trainer()
    trainer.submit(job_dir.root)
    told_at: float | None = None
    passed_on: dict[Wish, float] = {}
    try:
        while True:
            answered = trainer.answered()
            alive = trainer.alive
            events.forward()
            if answered:
                result = job_dir.result()
                if result is None or result.status == "failed":
                    # It may be about to leave, or CUDA may be broken: the next job gets a new one.
                    attempt.runtime.drop_trainer()
                return result
            if not alive:
                died(attempt, trainer)
            try:
                attempt.check()
            except (Cancelled, Released) as stop:
                if isinstance(stop, Released) and not events.worth_saving:
                    raise
                if told_at is None:
                    told_at = time.monotonic()
                    wish = Control.CANCEL if isinstance(stop, Cancelled) else Control.RELEASE
                    job_dir.tell(wish)
                elif time.monotonic() - told_at > STOP_TIMEOUT_S:
                    log.warning("trainer.did_not_stop")
                    raise
            _pass_on(attempt, job_dir, passed_on)
            time.sleep(POLL_S)
    except BaseException:
        attempt.runtime.drop_trainer()
        raise


def _pass_on(attempt: Attempt, job_dir: JobDir, passed_on: dict[Wish, float]) -> None:
    """Each wish once: what is heard of it may be older than its grant."""
    for wish, made_at in attempt.wishes.items():
        if made_at > passed_on.get(wish, 0.0):
            passed_on[wish] = made_at
            job_dir.wish(wish)


def died(attempt: Attempt, trainer: TrainerProcess) -> NoReturn:
    """The child is gone without an answer."""
    code = trainer.process.returncode
    log.error("trainer.died", code=code, stderr=trainer.stderr_tail())
    attempt.runtime.drop_trainer()
    # Which of both the attempt ends as is told from what it was asked for.
    attempt.check()
    if code == -9:
        raise our_fault(
            "The process on the GPU was killed, most likely for the memory it used. "
            "Try a lower resolution, fewer frames or a lower rank.",
            error_type="worker_oom_or_killed",
        )
    raise our_fault("The process on the GPU crashed; nothing is billed.")


def end(attempt: Attempt, result: Result | None) -> None:
    """Returns for a completed job; every other end is raised."""
    if result is None:
        raise our_fault("The process on the GPU ended without a result; nothing is billed.")
    match result.status:
        case "completed":
            if attempt.lease.lost:
                raise LeaseLost(attempt.claim)
        case "cancelled":
            raise Cancelled
        case "released":
            raise Released
        case "failed":
            message = result.error or "It failed."
            kind = result.error_type or "training_failed"
            log.warning("job.failed", error=message, error_type=kind, step=result.step)
            if result.users_fault:
                raise users_fault(message, error_type=kind, field=result.field or "")
            raise our_fault(message, error_type=kind)


def complete(attempt: Attempt, body: Mapping[str, Any], units: int) -> None:
    """End the request with its result and what it costs. Raises `LeaseLost`."""
    seconds = round(time.monotonic() - attempt.started, 3)
    reach("complete.before")
    attempt.write(lambda s: lifecycle.complete(s, attempt.claim, body, units, seconds))
    reach("complete.after_commit")
    log.info("attempt.completed", units=units)


def store_outputs(attempt: Attempt, job_dir: JobDir, outputs: Iterable[Output]) -> dict[str, Any]:
    """Put the outputs under this attempt's own keys; the row makes them the request's.

    None stands for one that was not made.
    """

    def check() -> None:
        attempt.forward.feed(())
        attempt.check()

    body: dict[str, Any] = {}
    for name, part, content_type in outputs:
        path = getattr(job_dir, part)
        if not path.exists():
            body[name] = None
            continue
        stored = put_patiently(
            attempt.runtime.storage,
            attempt.key("outputs", str(attempt.claim.attempt), path.name),
            path,
            content_type=content_type,
            check=check,
            say=attempt.forward.log,
        )
        body[name] = file_entry(stored, path.name)
    return body
