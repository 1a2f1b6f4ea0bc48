"""What the scenarios share: a stack for the length of a block, trainings on it, and the result."""

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import func, select

from app.db.models import Attempt, Request, Stage, State
from tests.faults.chaos import small_archive
from tests.faults.client import Accepted, Client, patiently
from tests.faults.judge import Verdict, judge
from tests.faults.stack import Layout, Stack, left_behind, running


@dataclass
class Figure:
    """What a scenario saw: numbers by name, and what must not be."""

    goal: str
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def require(self, condition: object, finding: str) -> None:
        if not condition:
            self.findings.append(finding)

    def take(self, verdict: Verdict) -> None:
        """The judge's verdict at the end."""
        self.numbers |= {
            "requests": verdict.accepted,
            "lost": verdict.lost,
            "ends": dict(verdict.ended),
            "attempts": dict(verdict.attempts),
        }
        self.findings += verdict.findings


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    seed: int = 1
    rounds: int = 0
    """0: as many as the scenario has by itself."""
    postgres: str | None = None
    down_s: float = 12.0
    """How long the store is away (R10)."""

    def times(self, default: int) -> int:
        return self.rounds or default


@dataclass
class Scene:
    """A running stack and a client of it."""

    stack: Stack
    client: Client
    rng: random.Random

    def training(self, **fields: Any) -> Accepted:
        accepted = self.client.submit("training", **fields)
        assert accepted is not None
        return accepted

    def generation(self) -> Accepted:
        accepted = self.client.submit("generation")
        assert accepted is not None
        return accepted

    def check(self) -> Accepted:
        accepted = self.client.submit("check")
        assert accepted is not None
        return accepted

    def cancel(self, one: Accepted) -> int:
        with httpx.Client(timeout=15.0, trust_env=False) as http:
            return patiently(lambda: http.put(one.cancel_url)).status_code

    def row(self, one: Accepted) -> Request:
        with self.stack.database.read() as session:
            return session.scalars(select(Request).where(Request.id == one.request_id)).one()

    def attempts(self, one: Accepted, stage: Stage | None = None) -> list[Attempt]:
        with self.stack.database.read() as session:
            found = session.scalars(
                select(Attempt).where(Attempt.request_id == one.request_id).order_by(Attempt.number)
            )
            return [attempt for attempt in found if stage in (None, attempt.stage)]

    def step(self, one: Accepted) -> int:
        """The newest step that the user was told of; 0 before the first."""
        progress = self.row(one).progress or {}
        return int(progress.get("step") or 0)

    def ended(self, one: Accepted) -> bool:
        return self.row(one).state == State.COMPLETED

    def until_ended(self, *ones: Accepted, limit_s: float = 240.0) -> None:
        for one in ones:
            self.stack.until(lambda: self.ended(one), limit_s, f"the end of {one.kind}")

    def all_ended(self, limit_s: float = 600.0) -> None:
        """And all webhooks taken."""

        def unfinished() -> int:
            with self.stack.database.read() as session:
                left = (Request.state != State.COMPLETED) | Request.webhook_next_at.is_not(None)
                return session.scalar(select(func.count()).select_from(Request).where(left)) or 0

        self.stack.until(lambda: unfinished() == 0, limit_s, "the end of everything")

    def judged(self, figure: Figure, cancelled: tuple[str, ...] = ()) -> None:
        """Heal, wait, judge."""
        self.stack.heal()
        self.all_ended()
        figure.take(judge(self.stack, self.client, cancelled))


@contextlib.contextmanager
def scene(figure: Figure, seed: int, layout: Layout, *, hooks: bool = False) -> Iterator[Scene]:
    """For the length of a block; what outlives it is a finding."""
    with tempfile.TemporaryDirectory(prefix="reelsmith-faults-") as name:
        folder = Path(name)
        with running(folder / "stack", small_archive(folder), seed, layout) as stack:
            hook = stack.hooks.url if hooks else None
            client = Client(stack.front.url, folder / "accepted.jsonl", stack.files, hook)
            try:
                yield Scene(stack, client, random.Random(f"{seed} {figure.goal}"))
            except AssertionError as error:
                raise AssertionError(f"{error}\n{stack.tails()}") from error
        figure.findings += [f"left running: {line}" for line in left_behind(stack)]


def seconds_until(condition: Callable[[], object], limit_s: float) -> float | None:
    """How long it took; None: longer than the limit."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit_s:
            return None
        time.sleep(0.05)
    return time.monotonic() - started
