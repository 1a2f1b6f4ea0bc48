"""Goals about restarts, partitions, full disks and a store that fails (R5, R7, R9, R10, R16)."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from app.db.models import Outcome, Stage
from app.storage import make_storage
from tests.app.storage.proxy import Fault
from tests.conftest import real_clip
from tests.faults.client import patiently
from tests.faults.scene import Asked, Figure, Scene, scene
from tests.faults.stack import LEASE_S, Layout
from tests.service.harness import zip_of

HANDOVER_S = 30.0


def r5(asked: Asked) -> Figure:
    """SIGTERM of everything in turn while a training runs and its user polls."""
    figure = Figure("R5")
    rounds = asked.times(2)
    handovers: list[float] = []
    codes: set[int] = set()
    polls = failed = 0
    with scene(figure, asked.seed, Layout(gateways=2, workers=2), hooks=True) as on:
        stack = on.stack
        for _ in range(rounds):
            one = on.training(number_of_steps=400)
            stack.until(lambda: on.step(one) >= 10, 120.0, "step 10")
            # Those of the GPU first, as long as there is something to hand over.
            for part in [*stack.workers["gpu"], *stack.workers["cpu"], *stack.gateways]:
                began = time.monotonic()
                codes.add(part.terminate())
                if part in stack.workers["gpu"]:
                    handovers.append(time.monotonic() - began)
                part.start()
                for _ in range(5):
                    polls += 1
                    reply = patiently(lambda: stack.http.get(one.status_url))
                    failed += reply.status_code not in (200, 202)
                    time.sleep(0.1)
            on.until_ended(one)
            outcomes = [a.outcome for a in on.attempts(one)]
            figure.require(Outcome.LOST not in outcomes, "an attempt was lost, not handed over")
            figure.require(Outcome.RELEASED in outcomes, "nothing was handed over")
        on.judged(figure)
    figure.numbers |= {
        "rounds": rounds,
        "exit statuses of workers and gateways": sorted(codes),
        "longest until a gpu worker left, s": round(max(handovers), 1),
        "polls": polls,
        "failed polls": failed,
    }
    figure.require(max(handovers) <= HANDOVER_S, "a worker took too long to leave")
    figure.require(failed == 0, f"{failed} polls failed")
    return figure


def r7(asked: Asked) -> Figure:
    """Workers are cut off from database and Redis for longer than the lease, as by a cable."""
    figure = Figure("R7")
    rounds = asked.times(2)
    if asked.postgres is None:
        figure.numbers["not run"] = "needs --postgres: SQLite is a file that nothing cuts off"
        return figure
    layout = Layout(gateways=1, workers=2, postgres=asked.postgres, wired="workers")
    fenced = 0
    with scene(figure, asked.seed, layout) as on:
        lines = [on.stack.database_wire, on.stack.redis_wire]
        for _ in range(rounds):
            one = on.training()
            on.stack.until(lambda: on.step(one) >= 10, 120.0, "step 10")
            logged = [len(part.log) for part in on.stack.workers["gpu"]]
            for line in filter(None, lines):
                line.set("hold")
            time.sleep(1.5 * LEASE_S + on.rng.uniform(0.0, 3.0))
            for line in filter(None, lines):
                line.set("open")
            on.until_ended(one)
            said = [
                part.log[before:]
                for part, before in zip(on.stack.workers["gpu"], logged, strict=True)
            ]
            fenced += any("attempt.lease_lost" in text for text in said)
            outcomes = [a.outcome for a in on.attempts(one, Stage.TRAIN)]
            figure.require(outcomes.count(Outcome.COMPLETED) == 1, f"it ended as {outcomes}")
        on.judged(figure)
    figure.numbers |= {"partitions": rounds, "losers that said so": fenced}
    return figure


def r9(asked: Asked) -> Figure:
    """The disk is full at each phase; and, where one may be mounted, a really small disk."""
    figure = Figure("R9")
    places = ("prepare.downloaded", "prepare.prepared", "train.job_made", "store.before_put")
    with scene(figure, asked.seed, Layout(gateways=1, workers=1)) as on:
        for place in places:
            on.stack.files.content = _captioned(on, f"a man in a car, {place}")
            on.stack.arm(place, "enospc")
            one = on.training() if place.startswith("train") else on.check()
            on.until_ended(one)
            retried = [a.detail for a in on.attempts(one) if a.outcome == Outcome.RETRIED]
            figure.require(retried, f"{place}: no attempt was retried")
        figure.numbers["phases"] = len(places)
        on.judged(figure)
    figure.numbers["small disk"] = _on_a_small_disk(asked, figure)
    return figure


def _on_a_small_disk(asked: Asked, figure: Figure) -> str:
    """A data set larger than the disk of the workers, then one that fits."""
    env = {"REELSMITH_ATTEMPTS_LIMIT": "3"}
    with contextlib.ExitStack() as stack:
        on = stack.enter_context(scene(figure, asked.seed, Layout(gateways=1, workers=1, env=env)))
        work = on.stack.settings.data_dir / "work"
        if not stack.enter_context(_tmpfs(work)):
            return "no tmpfs may be mounted here"
        large = _padded(on, 340)
        on.stack.files.content, small = large, on.stack.files.content
        one = on.check()
        on.until_ended(one)
        row = on.row(one)
        figure.require(row.error_type == "worker_disk_full", f"it ended as {row.error_type}")
        figure.require(row.billable_units == 0, "a full disk is billed")
        left = [path for path in work.rglob("*") if path.is_file()]
        figure.require(not left, f"{len(left)} files are left on the full disk")
        figure.require(not any(p.dead for p in on.stack.workers["cpu"]), "the worker died of it")
        on.stack.files.content = small
        after = on.check()
        on.until_ended(after)
        figure.require(
            on.row(after).result_status == 200, f"what fits ended with {on.row(after).error}"
        )
        attempts = len(on.attempts(one))
        return f"340 MB on 320 MB: {row.error_type} after {attempts} attempts, the next one ran"


@contextlib.contextmanager
def _tmpfs(folder: Path) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def _captioned(on: Scene, caption: str) -> bytes:
    """The same clip as a data set of its own, which nobody has prepared yet."""
    clip = ("phone.mp4", real_clip("carphone_pristine.mp4"))
    path = zip_of(on.stack.folder / "captioned.zip", clip, ("phone.txt", caption))
    return path.read_bytes()


def _padded(on: Scene, megabytes: int) -> bytes:
    path = on.stack.folder / "large.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(real_clip("carphone_pristine.mp4"), "phone.mp4")
        archive.writestr("phone.txt", "a man in a car")
        archive.writestr("notes.bin", os.urandom(megabytes * 1_000_000))
    return path.read_bytes()


STORE_FAULTS = (
    ("503", 10**9, "down: 503 to everything"),
    ("reset", 10**9, "down: connections are reset"),
    ("503", 5, "five 503"),
    ("reset", 5, "five resets"),
    ("corrupt", 1, "a flipped bit on its way"),
    ("wrong etag", 1, "a wrong ETag"),
)


def r10(asked: Asked) -> Figure:
    """The store fails while a finished training is stored; and a writer dies in a multipart."""
    figure = Figure("R10")
    faults = STORE_FAULTS[: asked.times(len(STORE_FAULTS))]
    with scene(figure, asked.seed, Layout(gateways=1, workers=1), hooks=True) as on:
        proxy = on.stack.s3
        assert proxy is not None
        for kind, times, what in faults:
            on.stack.arm("train.trained", "sleep:1.5")
            one = on.training()
            on.stack.until(lambda: on.stack.fired(), 180.0, "the end of the steps")
            on.stack.failpoints.with_name("failpoints.fired").unlink()
            corrupting = kind in ("corrupt", "wrong etag")
            fault = Fault(kind, lambda how, path: how == "PUT" or not corrupting, times)
            proxy.faults.append(fault)
            if times > 1000:
                time.sleep(asked.down_s)
                figure.require(not on.ended(one), f"{what}: it ended without its files")
                fault.times = 0
            on.until_ended(one)
            outcomes = [a.outcome for a in on.attempts(one, Stage.TRAIN)]
            figure.require(outcomes == [Outcome.COMPLETED], f"{what}: {outcomes}")
        figure.numbers |= {"faults": [what for _, _, what in faults], "down for, s": asked.down_s}
        figure.numbers["multipart"] = _dies_in_a_multipart(on, figure)
        on.judged(figure)
    return figure


_PUT = """
import sys
from pathlib import Path
from app.settings import Settings
from app.storage import make_storage
make_storage(Settings()).put_file("uploads/" + "0" * 32 + "/large.bin", Path(sys.argv[1]))
"""


def _dies_in_a_multipart(on: Scene, figure: Figure) -> str:
    """kill -9 of a process whose upload has some of its parts there."""
    proxy = on.stack.s3
    assert proxy is not None
    path = on.stack.folder / "large.bin"
    path.write_bytes(os.urandom(96 * 1024 * 1024))
    before = len(proxy.seen)
    env = on.stack.workers["cpu"][0].env
    process = subprocess.Popen([sys.executable, "-c", _PUT, str(path)], env=env)

    def parts() -> int:
        return sum(how == "PUT" and "partNumber" in where for how, where in proxy.seen[before:])

    on.stack.until(lambda: parts() >= 2 or process.poll() is not None, 60.0, "two parts")
    process.send_signal(signal.SIGKILL)
    process.wait()
    storage = make_storage(on.stack.settings)
    begun = storage.sweep(0.0)
    again = storage.sweep(0.0)
    figure.require(begun == 1 and again == 0, f"{begun} multipart uploads swept, then {again}")
    path.unlink()
    return f"killed after {parts()} parts: {begun} upload left, {again} after a sweep"


JUMPS_S = (3600.0, -3600.0)
SHIFTED = """
import time
_time = time.time

def shifted():
    with open({clock!r}) as file:
        return _time() + float(file.read() or 0)

time.time = shifted
"""
"""A ``sitecustomize`` whose processes have a clock that a file moves; waiting is not touched."""


def r16(asked: Asked) -> Figure:
    """The clocks of workers and of a gateway jump by an hour while a training runs."""
    figure = Figure("R16")
    if asked.postgres is None:
        figure.numbers["not run"] = "needs --postgres, a database with a clock of its own"
        return figure
    layout = Layout(gateways=2, workers=1, postgres=asked.postgres)
    with scene(figure, asked.seed, layout, hooks=True) as on:
        clock, site = on.stack.folder / "clock", on.stack.folder / "site"
        clock.write_text("0")
        site.mkdir()
        (site / "sitecustomize.py").write_text(SHIFTED.format(clock=str(clock)))
        jumping = [on.stack.gateways[1], *on.stack.workers["cpu"], *on.stack.workers["gpu"]]
        for part in jumping:
            part.kill()
            path = os.pathsep.join(filter(None, (str(site), part.env.get("PYTHONPATH"))))
            part.env = {**part.env, "PYTHONPATH": path}
            part.start()
        for jump in JUMPS_S:
            clock.write_text("0")
            one = on.training()
            on.stack.until(lambda: on.step(one) >= 10, 180.0, "step 10")
            clock.write_text(str(jump))
            on.until_ended(one)
            outcomes = [a.outcome for a in on.attempts(one)]
            expected = [Outcome.ADVANCED, Outcome.COMPLETED]
            figure.require(outcomes == expected, f"{jump:+.0f} s: {outcomes}")
        # A lease that was renewed by a clock an hour behind ends as soon as any other.
        one = on.training()
        on.stack.until(lambda: on.step(one) >= 10, 180.0, "step 10")
        for part in on.stack.workers["gpu"]:
            part.kill()
        began = time.monotonic()
        on.stack.until(lambda: len(on.attempts(one, Stage.TRAIN)) == 2, 60.0, "another worker")
        figure.numbers |= {
            "jumps, s": list(JUMPS_S),
            "started again after a kill, s": round(time.monotonic() - began, 1),
        }
        clock.write_text("0")
        on.judged(figure)
    return figure
