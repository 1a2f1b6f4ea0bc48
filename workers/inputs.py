"""What every preparation does: fetch what a user's URL names, and wait for a child process."""

import errno
import time
from pathlib import Path

from app.fetch import Downloaded, Fetcher, FetchError
from preprocessing.report import Problem
from workers.attempt import Attempt
from workers.children import POLL_S, ChildProcess, EventTail
from workers.failures import Failure, our_fault, users_fault


def download(
    attempt: Attempt, url: str, to: Path, field: str, *, max_bytes: int | None = None
) -> Downloaded:
    """Fetch what ``field`` of the request names, with a line in the log every few seconds.

    ``max_bytes`` defaults to an archive's. Raises `Failure`.
    """
    got = download_if_changed(attempt, url, to, field, "", max_bytes=max_bytes)
    assert got is not None, "nothing is unchanged that has no ETag"
    return got


def download_if_changed(
    attempt: Attempt, url: str, to: Path, field: str, etag: str, *, max_bytes: int | None = None
) -> Downloaded | None:
    """As `download`. None: the server still has what it gave ``etag`` to."""
    settings = attempt.runtime.settings
    said = time.monotonic()

    def progress(done: int, total: int | None) -> None:
        nonlocal said
        attempt.check()
        if time.monotonic() - said < 2.0:
            return
        said = time.monotonic()
        of = f" of {total / 1e6:.0f}" if total else ""
        attempt.forward.log(f"Downloading: {done / 1e6:.0f}{of} MB")
        attempt.forward.progress(stage="download", done=done, total=total)
        attempt.forward.feed(())

    attempt.forward.progress(stage="download")
    try:
        got = Fetcher.of(settings, attempt.runtime.storage).download_if_changed(
            url, to, etag, max_bytes=max_bytes or settings.max_archive_bytes, on_progress=progress
        )
    except FetchError as error:
        if error.users_fault:
            raise users_fault(
                str(error), error_type=error.type, field=field, ctx=error.ctx
            ) from error
        raise our_fault(str(error)) from error
    if got is not None:
        attempt.forward.log(f"Downloaded {got.size_bytes / 1e6:.1f} MB")
    return got


def refused(problem: Problem) -> Failure:
    """What a library found wrong with the user's files, as the end of the request."""
    return users_fault(
        problem.message, error_type=problem.type, field=problem.field, ctx=problem.ctx
    )


def wait(attempt: Attempt, child: ChildProcess, events: EventTail) -> int:
    """Until the child ends. It is killed when the attempt must end first.

    Raises `OSError`: the disk was full.
    """
    try:
        while True:
            code = child.poll()
            attempt.forward.feed(events.read())
            if code == ChildProcess.DISK_FULL:
                raise OSError(errno.ENOSPC, child.stderr_tail().strip())
            if code is not None:
                return code
            attempt.check()
            time.sleep(POLL_S)
    finally:
        child.kill()
