"""What the tables know, asked whenever a gateway is: right whichever process did it."""

from collections.abc import Iterator

import structlog
from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from app.clock import db_now
from app.db.engine import Database
from app.db.models import Request, State
from app.requests.outbox import QUEUES

log = structlog.get_logger()


class Everything(Collector):
    """A gateway's: this process's counts, and what the database knows as of now."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def collect(self) -> Iterator[Metric]:
        yield from REGISTRY.collect()
        up = GaugeMetricFamily("reelsmith_database_up", "1: the database answers.")
        try:
            with self._database.read() as session:
                found = [*_requests(session), *_queues(session), *_overdue(session)]
        except SQLAlchemyError as error:
            log.warning("metrics.database_away", error=repr(error))
            found = []
        up.add_metric([], float(bool(found)))
        yield up
        yield from found


def _requests(session: Session) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "reelsmith_requests", "Requests that have not expired.", labels=["state", "mode", "status"]
    )
    rows = session.execute(
        select(Request.state, Request.mode, Request.result_status, func.count())
        .where(Request.expired_at.is_(None))
        .group_by(Request.state, Request.mode, Request.result_status)
    )
    for state, mode, status, number in rows:
        family.add_metric([state, mode, str(status or "")], number)
    yield family


def _queues(session: Session) -> Iterator[Metric]:
    depth = GaugeMetricFamily("reelsmith_queue_depth", "Requests that wait.", labels=["queue"])
    oldest = GaugeMetricFamily(
        "reelsmith_queue_oldest_seconds", "Age of the oldest that waits.", labels=["queue"]
    )
    rows = session.execute(
        select(Request.stage, func.count(), db_now() - func.min(Request.created_at))
        .where(Request.state == State.QUEUED)
        .group_by(Request.stage)
    )
    waiting = {stage: (number, age) for stage, number, age in rows}
    for stage, queue in QUEUES.items():
        number, age = waiting.get(stage, (0, 0.0))
        depth.add_metric([queue], number)
        oldest.add_metric([queue], age)
    yield from (depth, oldest)


def _overdue(session: Session) -> Iterator[Metric]:
    conditions = {
        ("reelsmith_leases_overdue", "Running requests whose lease is over."): (
            (Request.state == State.RUNNING) & (Request.lease_expires_at < db_now())
        ),
        ("reelsmith_webhooks_due", "Webhooks that are due and not delivered."): (
            Request.webhook_next_at < db_now()
        ),
    }
    for (name, text), where in conditions.items():
        number = session.scalar(select(func.count()).select_from(Request).where(where)) or 0
        yield GaugeMetricFamily(name, text, value=number)
