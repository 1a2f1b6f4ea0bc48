"""Requests under a plan of faults, and the judgement at the end."""

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from sqlalchemy import func, select

from app.db.models import Request, State
from tests.conftest import real_clip
from tests.faults import plan as plans
from tests.faults.client import Client, patiently
from tests.faults.judge import Verdict, judge
from tests.faults.stack import Layout, Stack, left_behind, running
from tests.service.harness import zip_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """What is asked of the service."""

    trainings: int = 2
    generations: int = 1
    checks: int = 6
    cancels: int = 1
    """Checks or trainings besides, whose user changes his mind."""
    seconds: float = 60.0
    """Over which requests and faults are spread."""
    faults: int = 10
    drain_s: float = 600.0
    """For all to end, once nothing is broken any more."""


@dataclass
class Run:
    """A plan carried out."""

    seed: int
    verdict: Verdict
    done: Counter[str] = field(default_factory=Counter)
    """Faults by name."""
    fired: Counter[str] = field(default_factory=Counter)
    """Failpoints, with what they did."""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.verdict.findings


def small_archive(folder: Path) -> Path:
    """One short real clip."""
    clip = ("phone.mp4", real_clip("carphone_pristine.mp4"))
    return zip_of(folder / "clips.zip", clip, ("phone.txt", "a man in a car"))


def run(seed: int, layout: Layout, load: Load, say: Say = print) -> Run:
    """Everything that happens is a function of the arguments, as far as processes let it be."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reelsmith-faults-") as name:
        folder = Path(name)
        archive = small_archive(folder)
        with running(folder / "stack", archive, seed, layout) as stack:
            client = Client(
                stack.front.url, folder / "accepted.jsonl", stack.files, stack.hooks.url
            )
            done, cancelled = suffer(stack, client, seed, load, say)
            stack.heal()
            drain(stack, client, load, say)
            verdict = judge(stack, client, cancelled)
            fired = Counter(stack.fired())
        verdict.findings += [f"left running: {line}" for line in left_behind(stack)]
    return Run(seed, verdict, done, fired, time.monotonic() - started)


def suffer(
    stack: Stack, client: Client, seed: int, load: Load, say: Say
) -> tuple[Counter[str], list[str]]:
    """Submit, break and cancel as planned; returns the faults and the ids to be cancelled."""
    pending = plans.make_plan(seed, stack.layout, load.faults, load.seconds)
    for fault in pending:
        say(str(fault))
    cancelled: list[str] = []
    errors: list[BaseException] = []
    thread = threading.Thread(target=_submit_all, args=(client, seed, load, cancelled, errors))
    thread.start()
    done: Counter[str] = Counter()
    undo: list[tuple[float, plans.Undo]] = []
    began = time.monotonic()
    while pending or undo or thread.is_alive():
        now = time.monotonic() - began
        while pending and pending[0].at_s <= now:
            fault = pending.pop(0)
            done[fault.name] += 1
            how = plans.done(stack, fault)
            if how is not None:
                undo.append((now + fault.lasts_s, how))
        for due, how in [entry for entry in undo if entry[0] <= now]:
            undo.remove((due, how))
            how()
        stack.restart_dead()
        time.sleep(0.2)
    thread.join()
    if errors:
        raise errors[0]
    return done, cancelled


def _submit_all(
    client: Client, seed: int, load: Load, cancelled: list[str], errors: list[BaseException]
) -> None:
    rng = random.Random(f"{seed} submits")
    kinds = ["training"] * load.trainings + ["generation"] * load.generations
    kinds += ["check"] * load.checks
    kinds += [rng.choice(["training cancel", "check cancel"]) for _ in range(load.cancels)]
    rng.shuffle(kinds)
    # A training first: it is what takes long.
    kinds.sort(key=lambda kind: kind != "training")
    began = time.monotonic()
    try:
        for number, kind in enumerate(kinds):
            due = 0.6 * load.seconds * number / len(kinds)
            time.sleep(max(0.0, began + due - time.monotonic()))
            one = client.submit(kind.split()[0], key=f"{seed}-{number}", limit_s=240.0)
            if one is not None and kind.endswith("cancel"):
                time.sleep(rng.uniform(0.0, 3.0))
                cancelled.append(one.request_id)
                _cancel(client, one.cancel_url)
    except BaseException as error:
        errors.append(error)


def _cancel(client: Client, url: str) -> None:
    with httpx.Client(timeout=15.0, trust_env=False) as http:
        reply = patiently(lambda: http.put(url), 240.0)
    assert reply.status_code in (202, 400), f"{reply.status_code}: {reply.text}"


def drain(stack: Stack, client: Client, load: Load, say: Say) -> None:
    """Until all have ended and all webhooks were taken, or there is no more hope."""

    def unfinished() -> int:
        with stack.database.read() as session:
            return (
                session.scalar(
                    select(func.count())
                    .select_from(Request)
                    .where(
                        (Request.state != State.COMPLETED) | Request.webhook_next_at.is_not(None)
                    )
                )
                or 0
            )

    deadline = time.monotonic() + load.drain_s
    said = 0.0
    while (left := unfinished()) > 0 and time.monotonic() < deadline:
        if time.monotonic() - said > 20.0:
            said = time.monotonic()
            say(f"{left} of {len(client.accepted)} to go")
        stack.restart_dead()
        time.sleep(0.3)
