"""Keeping a claim alive from a thread, and noticing at once when it is gone."""

import contextvars
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType

import structlog

from app.requests.lifecycle import LeaseLost, RenewResult
from trainer.spec import Wish

log = structlog.get_logger()


class LeaseKeeper:
    """Renews every ``heartbeat_s``; `lost`, `cancel_requested` and `wishes` are safe to read
    anywhere.

    When the database can't be reached, the lease counts as lost a heartbeat before it can expire
    there, by this machine's monotonic clock: a paused or cut-off worker fences itself.
    """

    def __init__(
        self,
        renew: Callable[[], RenewResult],
        *,
        lease_s: float,
        heartbeat_s: float,
    ) -> None:
        self._renew = renew
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._lost = threading.Event()
        self._cancel = threading.Event()
        self._stop = threading.Event()
        self.wishes: Mapping[Wish, float] = {}
        """As of the last renewal; replaced, never changed."""
        self._renewed_at = time.monotonic()
        # In a copy of our context, so that its lines of log name the request, too.
        run = partial(contextvars.copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="lease", daemon=True)

    @property
    def cancel_requested(self) -> bool:
        return self._cancel.is_set()

    @property
    def lost(self) -> bool:
        # Also by the clock: after a SIGSTOP the thread may not have run yet, but time has passed.
        return self._lost.is_set() or self._expired()

    def _expired(self) -> bool:
        """A heartbeat early, since the database counts from when it wrote."""
        return time.monotonic() - self._renewed_at > self._lease_s - self._heartbeat_s

    def __enter__(self) -> "LeaseKeeper":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(self._heartbeat_s)

    def _run(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            asked_at = time.monotonic()
            try:
                renewal = self._renew()
            except LeaseLost:
                self._lost.set()
                return
            except Exception as error:  # the database is away; it may come back in time
                if self._expired():
                    log.warning("lease.expired_unreachable", error=str(error))
                    self._lost.set()
                    return
                log.warning("lease.renewal_failed", error=str(error))
                continue
            self._renewed_at = asked_at
            if renewal.cancel_requested:
                self._cancel.set()
            self.wishes = renewal.wishes
