"""Reelsmith's worker with jobs that do no work of their own: what is left is the queue.

    celery -A benchmarks.queue_worker worker -Q cpu

Claim, lease, scratch folder, a stored file and the completion with its bill are the product's.
"""

import os
import time

from app.broker import make_celery
from app.db.models import Stage
from app.requests import lifecycle
from app.requests.outbox import TASKS
from app.settings import Settings
from benchmarks.marks import JOB_S, mark
from preprocessing.failpoints import reach
from workers.attempt import Attempt, attempt_next
from workers.files import file_entry
from workers.runtime import Runtime

UNITS = 100
LOOK_S = 0.02

settings = Settings()
celery = make_celery(
    settings.redis_url.get_secret_value() if settings.redis_url else None, settings.data_dir
)
_runtime: Runtime | None = None


@celery.task(name=TASKS["cpu"])
def prepare() -> None:
    """The next request, to its end."""
    global _runtime
    if _runtime is None:
        _runtime = Runtime(settings)
    attempt_next(_runtime, Stage.PREPARE, work)


def work(attempt: Attempt) -> None:
    """Wait, store a file, complete: each as a training does."""
    mark("start", attempt.request_id)
    ends = time.monotonic() + float(os.environ[JOB_S])
    while time.monotonic() < ends:
        attempt.check()
        time.sleep(LOOK_S)
    path = attempt.folder / "lora.safetensors"
    path.write_text(f"{attempt.request_id} {attempt.claim.attempt}")
    key = attempt.key("outputs", str(attempt.claim.attempt), path.name)
    stored = attempt.runtime.storage.put_file(key, path)
    attempt.check()
    body = {"lora_file": file_entry(stored, path.name)}
    reach("complete.before")
    attempt.write(lambda session: lifecycle.complete(session, attempt.claim, body, UNITS, 0.0))
    reach("complete.after_commit")
    mark("done", attempt.request_id)
