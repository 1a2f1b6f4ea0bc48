"""What a worker process needs: settings, database, store, and the trainer that stays alive."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from app.broker import Waker, make_celery
from app.db.engine import Database
from app.requests import lifecycle
from app.requests.lifecycle import Claim
from app.requests.outbox import publish_pending
from app.settings import Settings
from app.storage import Storage, make_storage
from workers.children import TrainerProcess
from workers.fitness import Fitness
from workers.lease import LeaseKeeper


@dataclass
class Runtime:
    """One per worker process, made after the fork."""

    settings: Settings
    stopping: Callable[[], bool] = lambda: False
    """Whether this worker was asked to go away; a training gives its request back then."""
    trainer: TrainerProcess | None = None
    worker: str = field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    @cached_property
    def database(self) -> Database:
        return Database(self.settings.database_url)

    @cached_property
    def storage(self) -> Storage:
        return make_storage(self.settings)

    @cached_property
    def waker(self) -> Waker:
        redis = self.settings.redis_url
        return Waker(
            make_celery(redis.get_secret_value() if redis else None, self.settings.data_dir)
        )

    def can_work(self) -> bool:
        """Whether a failure on the GPU was not the machine's. A trainer that lives shows it, and
        its memory may leave no room for another process to try."""
        return (self.trainer is not None and self.trainer.alive) or self.fitness.look()

    @cached_property
    def fitness(self) -> Fitness:
        """For work on the GPU."""
        return Fitness(self.settings)

    @property
    def work_root(self) -> Path:
        return self.settings.data_dir.resolve() / "work"

    @property
    def cache(self) -> Path:
        return self.settings.data_dir.resolve() / "cache"

    def keep_lease(self, claim: Claim) -> LeaseKeeper:
        def renew() -> lifecycle.RenewResult:
            with self.database.write() as session:
                return lifecycle.renew(session, claim, self.settings.lease_s)

        return LeaseKeeper(
            renew, lease_s=self.settings.lease_s, heartbeat_s=self.settings.heartbeat_s
        )

    def live_trainer(self) -> TrainerProcess:
        """The trainer child; a dead one is replaced."""
        if self.trainer is None or not self.trainer.alive:
            stderr = self.settings.data_dir / "logs" / "trainer.stderr"
            self.trainer = TrainerProcess(stderr, self.settings.gpus_per_job)
        return self.trainer

    def drop_trainer(self) -> None:
        if self.trainer is not None:
            self.trainer.kill()
            self.trainer = None

    def publish(self) -> None:
        """Send wake-ups for what this task has queued."""
        publish_pending(self.database, self.waker)
