"""Which faults come when: a function of the seed, and what each of them does."""

import contextlib
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.app.storage.proxy import Fault as StoreFault
from tests.faults.stack import LEASE_S, Layout, Stack

Undo = Callable[[], None]
Act = Callable[[Stack, int], Undo | None]


@dataclass(frozen=True)
class Fault:
    """One fault. ``pick`` chooses among what it may hit; ``lasts_s`` is for what is undone."""

    at_s: float
    name: str
    pick: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.at_s:6.1f} s  {self.name} {self.pick}"


KILLED_AT: Final = (
    "worker.woken",
    "worker.claimed",
    "prepare.downloaded",
    "prepare.prepared",
    "prepare.stored",
    "train.job_made",
    "train.trained",
    "generate.job_made",
    "generate.made",
    "store.before_put",
    "store.between",
    "store.after_put",
    "complete.before",
    "complete.before_ledger",
    "complete.before_commit",
    "complete.after_commit",
    "checkpoint.before_rename",
    "checkpoint.after_rename",
    "submit.before_commit",
    "submit.after_commit",
    "wake.before_send",
    "wake.after_send",
    "webhook.before_post",
    "webhook.after_post",
    "webhook.after_mark",
)
"""Failpoints that end the process group of whoever comes by."""
FULL_AT: Final = ("prepare.downloaded", "prepare.prepared", "store.before_put", "train.job_made")
"""Where a disk may be full."""


def _kill_worker(stack: Stack, pick: int, queue: str) -> None:
    parts = stack.workers[queue]
    parts[pick % len(parts)].kill()


def kill_cpu_worker(stack: Stack, pick: int) -> None:
    _kill_worker(stack, pick, "cpu")


def kill_gpu_worker(stack: Stack, pick: int) -> None:
    """The one that trains, if one does."""
    parts = stack.workers["gpu"]
    busy = [part for part in parts if part.child(b"trainer")]
    (busy or parts)[pick % len(busy or parts)].kill()


def kill_trainer(stack: Stack, pick: int) -> None:
    """As the kernel does when memory ends."""
    for part in stack.workers["gpu"]:
        if (pid := part.child(b"trainer")) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill_gateway(stack: Stack, pick: int) -> None:
    stack.gateways[pick % len(stack.gateways)].kill()


def kill_redis(stack: Stack, pick: int) -> None:
    assert stack.redis is not None
    stack.redis.kill()


def kill_redis_with_its_files(stack: Stack, pick: int) -> None:
    assert stack.redis is not None
    stack.redis.kill()
    shutil.rmtree(stack.folder / "redis")
    (stack.folder / "redis").mkdir()


def stop_part(stack: Stack, pick: int) -> None:
    """SIGTERM, as in a rolling restart; the supervisor starts it again."""
    parts = [part for part in stack.parts if part is not stack.redis]
    part = parts[pick % len(parts)]
    if not part.dead:
        part.thaw()
        os.kill(part.pid, signal.SIGTERM)


def freeze_worker(stack: Stack, pick: int) -> Undo:
    """SIGSTOP until its lease is over and somebody else has taken it, then SIGCONT."""
    parts = [part for group in stack.workers.values() for part in group]
    part = parts[pick % len(parts)]
    if not part.dead:
        part.freeze()
    return part.thaw


def cut_redis(stack: Stack, pick: int) -> Undo:
    line = stack.redis_wire
    assert line is not None
    line.set("cut")
    return lambda: line.set("open")


def hold_redis(stack: Stack, pick: int) -> Undo:
    line = stack.redis_wire
    assert line is not None
    line.set("hold")
    return lambda: line.set("open")


def hold_database(stack: Stack, pick: int) -> Undo:
    line = stack.database_wire
    assert line is not None
    line.set("hold")
    return lambda: line.set("open")


def cut_database(stack: Stack, pick: int) -> Undo:
    line = stack.database_wire
    assert line is not None
    line.set("cut")
    return lambda: line.set("open")


def lose_answers(stack: Stack, pick: int) -> None:
    stack.front.lost_answers += 1 + pick % 4


def cut_clients(stack: Stack, pick: int) -> Undo:
    stack.front.set("cut")
    return lambda: stack.front.set("open")


def _spoil_store(stack: Stack, kind: str, times: int) -> None:
    assert stack.s3 is not None
    matches = {"corrupt": _puts, "wrong etag": _puts}.get(kind, lambda method, path: True)
    stack.s3.faults.append(StoreFault(kind, matches, times))


def _puts(method: str, path: str) -> bool:
    return method == "PUT"


def store_errors(stack: Stack, pick: int) -> None:
    _spoil_store(stack, "503", 2 + pick % 5)


def store_resets(stack: Stack, pick: int) -> None:
    _spoil_store(stack, "reset", 2 + pick % 5)


def store_corrupts(stack: Stack, pick: int) -> None:
    _spoil_store(stack, ("corrupt", "wrong etag")[pick % 2], 1)


def store_down(stack: Stack, pick: int) -> Undo:
    assert stack.s3 is not None
    fault = StoreFault(("503", "reset")[pick % 2], times=10**9)
    stack.s3.faults.append(fault)

    def undo() -> None:
        fault.times = 0

    return undo


def spoil_downloads(stack: Stack, pick: int) -> None:
    stack.files.faults.append(("cut", "503", "stall")[pick % 3])


def kill_at_failpoint(stack: Stack, pick: int) -> None:
    stack.arm(KILLED_AT[pick % len(KILLED_AT)], "killgroup")


def fill_disk(stack: Stack, pick: int) -> None:
    stack.arm(FULL_AT[pick % len(FULL_AT)], "enospc")


def fail_unforeseen(stack: Stack, pick: int) -> None:
    stack.arm(("prepare.downloaded", "train.trained", "complete.before_ledger")[pick % 3], "raise")


ALWAYS: Final[dict[str, tuple[Act, int]]] = {
    "kill a cpu worker": (kill_cpu_worker, 3),
    "kill a gpu worker": (kill_gpu_worker, 4),
    "kill the trainer": (kill_trainer, 3),
    "kill a gateway": (kill_gateway, 4),
    "SIGTERM": (stop_part, 3),
    "freeze a worker": (freeze_worker, 2),
    "lose answers": (lose_answers, 2),
    "cut clients off": (cut_clients, 1),
    "spoil downloads": (spoil_downloads, 2),
    "kill at a failpoint": (kill_at_failpoint, 6),
    "full disk": (fill_disk, 2),
    "unforeseen error": (fail_unforeseen, 1),
}
"""What it does, and how often it comes beside the others."""
WITH_REDIS: Final[dict[str, tuple[Act, int]]] = {
    "kill Redis": (kill_redis, 3),
    "kill Redis with its files": (kill_redis_with_its_files, 1),
    "cut Redis off": (cut_redis, 1),
    "hold Redis": (hold_redis, 1),
}
WITH_S3: Final[dict[str, tuple[Act, int]]] = {
    "store errors": (store_errors, 2),
    "store resets": (store_resets, 2),
    "store corrupts": (store_corrupts, 1),
    "store down": (store_down, 1),
}
WITH_POSTGRES: Final[dict[str, tuple[Act, int]]] = {
    "cut the database off": (cut_database, 2),
    "hold the database": (hold_database, 1),
}


def catalogue(layout: Layout) -> dict[str, tuple[Act, int]]:
    """What can happen to such a stack."""
    found = dict(ALWAYS)
    if layout.broker == "redis":
        found |= WITH_REDIS
    if layout.store == "s3":
        found |= WITH_S3
    if layout.postgres is not None:
        found |= WITH_POSTGRES
    return found


def make_plan(seed: int, layout: Layout, num_faults: int, seconds: float) -> list[Fault]:
    """``num_faults`` over ``seconds``, in order. The same for the same arguments."""
    rng = random.Random(seed)
    known = catalogue(layout)
    names = rng.choices(list(known), [weight for _, weight in known.values()], k=num_faults)
    times = sorted(rng.uniform(0.5, seconds) for _ in names)
    return [
        Fault(at_s, name, rng.randrange(10**6), _lasts(name, rng))
        for at_s, name in zip(times, names, strict=True)
    ]


def _lasts(name: str, rng: random.Random) -> float:
    if name == "freeze a worker":
        return rng.uniform(1.2, 2.0) * LEASE_S
    return rng.uniform(0.5, LEASE_S)


def done(stack: Stack, fault: Fault) -> Undo | None:
    """Do it; returns how it is undone, where it lasts."""
    act, _ = catalogue(stack.layout)[fault.name]
    return act(stack, fault.pick)
