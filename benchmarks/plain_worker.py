"""What a project usually ships, to compare with: a Celery worker whose queue is the truth.

    celery -A benchmarks.plain_worker worker -c 2

``REELSMITH_BENCH_ACKS=late`` adds ``acks_late``, ``reject_on_worker_lost`` and a prefetch of one,
which is the best that the settings offer.
"""

import os
import time

from celery import Celery

from benchmarks.marks import JOB_S, mark

VISIBILITY_TIMEOUT_S = 15
late = os.environ.get("REELSMITH_BENCH_ACKS") == "late"

celery = Celery("plain", broker=os.environ["REELSMITH_REDIS_URL"])
celery.conf.update(
    task_default_queue="plain",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
    broker_transport_options={
        "visibility_timeout": VISIBILITY_TIMEOUT_S,
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
    },
)
if late:
    celery.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1
    )


@celery.task(name="plain.work")
def work(job: str) -> None:
    """As long as the other one's."""
    mark("start", job)
    time.sleep(float(os.environ[JOB_S]))
    mark("done", job)
