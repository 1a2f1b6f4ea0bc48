"""The child process that stays between jobs, so that the base model is loaded once.

In: one JSON line per job, ``{"job_dir": "..."}``. Out: one line per job when it has ended,
``{"job_dir": "...", "status": "..."}``. Whatever libraries print goes to standard error. It leaves
when its input ends, after SIGTERM, when its parent dies, or after an error nobody foresaw, since
CUDA may then be broken; the caller starts another.

Started by `torchrun` it is several processes, one per GPU: the first one reads and answers, the
others follow it (`follow.py`). After a failed job they all leave: the others may wait for the one
that failed.
"""

import json
import os
import sys
from pathlib import Path
from typing import TextIO

from trainer.follow import follow_jobs
from trainer.model_cache import device_of
from trainer.parallel import Group, NextJob, dismiss, join_group
from trainer.process import ReleaseOnSigterm
from trainer.run import INTERNAL_ERROR, ModelCache, run_job


def serve() -> int:
    """Run jobs until the input ends; returns the exit status."""
    group = join_group(device_of("auto"))
    if not group.leads:
        return follow_jobs(group)
    status = _lead(group)
    if status == 0:
        dismiss(group)
    return status


def _lead(group: Group) -> int:
    replies = _claim_stdout()
    models = ModelCache()
    for line in sys.stdin:
        if not line.strip():
            continue
        job_dir = Path(json.loads(line)["job_dir"])
        with ReleaseOnSigterm(job_dir) as release:
            group.tell(NextJob(job_dir))
            result = run_job(job_dir, models, group)
        replies.write(json.dumps({"job_dir": str(job_dir), "status": result.status}) + "\n")
        replies.flush()
        if release.received:
            return 0
        if result.status == "failed" and not result.users_fault:
            models.clear()
        if result.error_type == INTERNAL_ERROR or (result.status == "failed" and group.size > 1):
            return 1
    return 0


def _claim_stdout() -> TextIO:
    """The real standard output for us alone; file descriptor 1 becomes standard error."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies
