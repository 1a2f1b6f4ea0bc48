"""The workers' Celery app: ``celery -A workers.celery_app worker -Q cpu|gpu -c 1``.

SIGTERM (a warm shutdown) is the way to stop a worker: the running training is asked to save a
checkpoint and give its request back, which takes seconds, and then the worker ends.
"""

import logging
import threading
from multiprocessing.sharedctypes import RawValue
from typing import Any

from celery import Celery, signals
from celery.exceptions import Reject
from pydantic import ValidationError

from app.broker import make_celery
from app.db.engine import Database
from app.db.models import Stage
from app.logging import configure
from app.requests.outbox import QUEUES, TASKS
from app.settings import Settings, problems_of
from workers import exposed
from workers.presence import announce
from workers.runtime import Runtime
from workers.stages import prepare_next, work_next

try:
    settings = Settings()
except ValidationError as error:
    # Celery would print the traceback of its own import, in which this is one line of forty.
    raise SystemExit("\n".join(problems_of(error))) from None
# Before Celery says a word: its warnings are JSON lines, too.
configure(settings.log_level, settings.secrets)
logging.captureWarnings(True)
celery: Celery = make_celery(
    settings.redis_url.get_secret_value() if settings.redis_url else None, settings.data_dir
)

# Written by the main process, read by its forked child, so it must exist before the fork.
# Without a lock: it is set in a signal handler.
_stopping = RawValue("b", 0)

_runtime: Runtime | None = None


@signals.worker_shutting_down.connect
def _remember_shutdown(**_: Any) -> None:
    _stopping.value = 1


@signals.setup_logging.connect
def _keep_our_logging(**_: Any) -> None:
    """Celery sets none up where somebody answers this signal."""


@signals.worker_ready.connect
def _serve_metrics(**_: Any) -> None:
    if settings.metrics_port is not None:
        exposed.serve(settings.metrics_host, settings.metrics_port)


@signals.worker_process_init.connect
def _announce(**_: Any) -> None:
    queues = sorted(celery.amqp.queues.consume_from)
    fitness = runtime().fitness if QUEUES[Stage.TRAIN] in queues else None
    if fitness is not None:  # now, and not when somebody waits for the first training
        threading.Thread(target=fitness.look, name="fitness", daemon=True).start()
    name = runtime().worker
    announce(Database(settings.database_url), name, ",".join(queues)[:16], fitness)


@signals.worker_process_shutdown.connect
def _stop_trainer(**_: Any) -> None:
    if _runtime is not None and _runtime.trainer is not None:
        _runtime.trainer.kill()


def runtime() -> Runtime:
    """This process's runtime, made on first use: after the fork, so nothing is shared."""
    global _runtime
    if _runtime is None:
        _runtime = Runtime(settings, stopping=lambda: bool(_stopping.value))
    return _runtime


@celery.task(name=TASKS["cpu"])
def prepare() -> None:
    """Prepare the next request, if there is one."""
    prepare_next(_willing_runtime())


@celery.task(name=TASKS["gpu"])
def train() -> None:
    """Train or generate the next request, if one is prepared."""
    willing = _willing_runtime()
    if not willing.fitness.wait(willing.stopping):
        raise Reject("this worker's machine can't work", requeue=True)
    work_next(willing)


def _willing_runtime() -> Runtime:
    """A worker on its way out takes nothing new: it hands the wake-up to the others."""
    if _stopping.value:
        raise Reject("this worker is being stopped", requeue=True)
    return runtime()
