"""Goals about workers that die, freeze or are told to stop (R1, R2, R6, R8, R14, R23)."""

import contextlib
import os
import re
import signal
import time
from collections import Counter

from app.db.models import Outcome, Stage
from app.settings import Settings
from tests.faults.client import Accepted, patiently
from tests.faults.scene import Asked, Figure, Scene, scene, seconds_until
from tests.faults.stack import LEASE_S, Layout, Part
from tests.service.harness import descendants

TRAINERS = Layout(gateways=1, workers=2)
LIGHT = {"REELSMITH_BENCH_JOB_S": "0.3"}


def r1(asked: Asked) -> Figure:
    """SIGKILL of a gpu worker's process group while it trains."""
    figure = Figure("R1")
    lost_steps: list[int] = []
    restarts: list[float] = []
    kills = 0
    with scene(figure, asked.seed, TRAINERS, hooks=True) as on:
        current = on.training()
        while kills < asked.times(10):
            if on.ended(current):
                current = on.training()
            on.stack.until(lambda: on.ended(current) or _trainer(on), 120.0, "a training")
            time.sleep(on.rng.uniform(0.2, 8.0))
            worker = _worker_of(on, current)
            if worker is None:
                continue
            reached, before = on.step(current), len(on.attempts(current, Stage.TRAIN))
            worker.kill()
            kills += 1
            killed_at = time.monotonic()
            worker.start()
            on.stack.until(
                lambda: on.ended(current) or len(on.attempts(current, Stage.TRAIN)) > before,
                120.0,
                "the next attempt",
            )
            if on.ended(current):
                continue
            restarts.append(time.monotonic() - killed_at)
            on.stack.until(lambda: on.ended(current) or _went_on(on, current), 120.0, "its start")
            lost_steps.append(max(0, reached - _resumed_at(on, current)))
        on.judged(figure)
    figure.numbers |= {
        "SIGKILLs": kills,
        "most steps lost": max(lost_steps, default=0),
        "checkpoint every": 20,
        "longest until the next attempt, s": round(max(restarts, default=0.0), 1),
        "lease, s": LEASE_S,
    }
    figure.require(max(lost_steps, default=0) <= 20 + 10, "more than a checkpoint's steps are lost")
    return figure


def r1_queue(asked: Asked) -> Figure:
    """The same over a queue of trainings, each of which loses a worker once: at a random time after
    it was claimed, so that some die before their first step and some while they are stored."""
    figure = Figure("R1 over a queue")
    rounds = asked.times(6)
    due: dict[str, float] = {}
    hit: set[str] = set()
    with scene(figure, asked.seed, TRAINERS, hooks=True) as on:
        ones = [on.training() for _ in range(rounds)]
        left = list(ones)
        while left:
            time.sleep(0.05)
            for one in left:
                if one.request_id in hit or (worker := _worker_of(on, one)) is None:
                    continue
                at = due.setdefault(one.request_id, time.monotonic() + on.rng.uniform(0.2, 8.0))
                if time.monotonic() >= at:
                    worker.kill()
                    hit.add(one.request_id)
                    worker.start()
            left = [one for one in left if not on.ended(one)]
        attempts = [len(on.attempts(one, Stage.TRAIN)) for one in ones]
        on.judged(figure)
    figure.numbers |= {
        "trainings": rounds,
        "SIGKILLs": len(hit),
        "most attempts of one": max(attempts),
    }
    figure.require(
        sum(attempts) <= rounds + len(hit), f"{sum(attempts)} attempts for {len(hit)} kills"
    )
    return figure


def r1_defaults(asked: Asked) -> Figure:
    """The same once, with the times that an operator gets. The tiny model takes its 250 steps in
    seconds, so here checkpoints come by time alone, as they do where a step takes half a second."""
    figure = Figure("R1 with default times")
    names = ("lease_s", "heartbeat_s", "reaper_interval_s", "checkpoint_every_s")
    fields = Settings.model_fields
    env = {f"REELSMITH_{name.upper()}": str(fields[name].default) for name in names}
    env["REELSMITH_CHECKPOINT_EVERY"] = "1000000"
    restarts, lost, cancelled = [], [], []
    with scene(figure, asked.seed, Layout(gateways=1, workers=2, env=env)) as on:
        for _ in range(asked.times(1)):
            one = on.training(number_of_steps=10_000)
            on.stack.until(lambda: on.step(one) > 0, 120.0, "a step")
            first_step_at = time.monotonic()
            time.sleep(on.rng.uniform(50.0, 100.0))
            worker, reached = _worker_of(on, one), on.step(one)
            assert worker is not None
            worker.kill()
            step_s = (time.monotonic() - first_step_at) / reached
            started = seconds_until(lambda: len(on.attempts(one, Stage.TRAIN)) == 2, 120.0)
            figure.require(started is not None and started <= 60.0, f"started after {started} s")
            restarts.append(round(started or 0.0, 1))
            on.stack.until(lambda: _went_on(on, one), 120.0, "its start")
            lost.append(round((reached - _resumed_at(on, one)) * step_s, 1))
            on.cancel(one)  # how it would go on is R1's
            cancelled.append(one.request_id)
            on.until_ended(one)
        on.judged(figure, tuple(cancelled))
    figure.numbers |= {**env, "until the next attempt, s": restarts, "work repeated, s": lost}
    figure.require(max(lost) <= 60.0, f"{max(lost)} s of work are repeated")
    return figure


def r2(asked: Asked) -> Figure:
    """SIGKILL of the trainer alone; and one request whose trainer dies every time."""
    figure = Figure("R2")
    kills = 0
    layout = Layout(gateways=1, workers=1, env={"REELSMITH_ATTEMPTS_LIMIT": "3"})
    with scene(figure, asked.seed, layout) as on:
        while kills < asked.times(6) - 3:
            one = on.training()
            for _ in range(2):
                reached = on.step(one)
                on.stack.until(
                    lambda: on.ended(one) or on.step(one) > reached,
                    120.0,
                    "a step",
                )
                time.sleep(on.rng.uniform(0.0, 2.0))
                kills += not on.ended(one) and _kill_trainer(on)
            on.until_ended(one)
            details = [a.detail or "" for a in on.attempts(one) if a.outcome == Outcome.RETRIED]
            figure.require(all("was killed" in text for text in details), f"retried for: {details}")
        poison, after = on.training(number_of_steps=5000), on.training()
        for number in range(1, 4):
            on.stack.until(
                lambda: len(on.attempts(poison, Stage.TRAIN)) == number and _trainer(on),
                120.0,
                f"attempt {number}",
            )
            time.sleep(on.rng.uniform(0.0, 1.0))
            kills += _kill_trainer(on)
            on.stack.until(
                lambda: on.attempts(poison, Stage.TRAIN)[number - 1].outcome,
                60.0,
                "its end",
            )
        on.until_ended(poison, after)
        row, next_ = on.row(poison), on.attempts(after, Stage.TRAIN)[0]
        assert row.finished_at is not None
        figure.numbers["next job starts after, s"] = round(next_.started_at - row.finished_at, 2)
        figure.require(row.error_type == "worker_oom_or_killed", f"it ended as {row.error_type}")
        figure.require(row.billable_units == 0, "a dead request is billed")
        figure.require(on.row(after).result_status == 200, "the next one did not end well")
        on.client.accepted.remove(poison)  # it was meant to die
        on.judged(figure)
    figure.numbers["SIGKILLs of the trainer"] = kills
    return figure


def r6(asked: Asked) -> Figure:
    """Jobs of many leases are started once."""
    figure = Figure("R6")
    env = {"REELSMITH_LEASE_S": "3", "REELSMITH_HEARTBEAT_S": "1"}
    with scene(figure, asked.seed, Layout(gateways=1, workers=2, env=env)) as on:
        ones = [on.training(number_of_steps=300) for _ in range(asked.times(2))]
        on.stack.until(lambda: all(on.ended(one) for one in ones), 600.0, "long trainings")
        attempts = [on.attempts(one, Stage.TRAIN) for one in ones]
        leases = [(a[-1].ended_at or 0.0) - a[0].started_at for a in attempts]
        figure.numbers |= {
            "jobs": len(ones),
            "starts": sum(map(len, attempts)),
            "shortest in leases": round(min(leases) / 3.0, 1),
        }
        figure.require(all(len(a) == 1 for a in attempts), "a job was started again")
    return figure


def r8(asked: Asked) -> Figure:
    """SIGSTOP past the lease, another takes over, SIGCONT: the loser changes nothing."""
    figure = Figure("R8")
    fenced = stale = late = 0
    rounds = asked.times(3)
    with scene(figure, asked.seed, TRAINERS) as on:
        assert on.stack.s3 is not None
        for number in range(rounds):
            one = on.training()
            phase = ("train.job_made", "train.trained", "complete.before", "steps")[number % 4]
            frozen = _frozen_at(on, one, phase)
            begun = on.attempts(one, Stage.TRAIN)
            loser = begun[-1]
            on.stack.until(
                lambda: len(on.attempts(one, Stage.TRAIN)) > len(begun),
                120.0,
                "somebody else",
            )
            logged, seen = len(frozen.log), len(on.stack.s3.seen)
            frozen.thaw()
            on.until_ended(one)
            noticed = seconds_until(
                lambda: "attempt.lease_lost" in frozen.log[logged:],
                60.0,
            )
            fenced += noticed is not None
            puts = [path for how, path in on.stack.s3.seen[seen:] if how == "PUT"]
            mine = [path for path in puts if f"{one.request_id}-" in path]
            stale += sum(f"/outputs/{loser.number}/" in path for path in mine)
            late += sum(f"-{loser.number}/" in path and "/checkpoints/" in path for path in mine)
            outcomes = [a.outcome for a in on.attempts(one, Stage.TRAIN)]
            figure.require(outcomes[-1] == Outcome.COMPLETED, f"it ended as {outcomes}")
            figure.require(outcomes[0] == Outcome.LOST, f"the frozen one ended as {outcomes[0]}")
        on.judged(figure)
    figure.numbers |= {
        "rounds": rounds,
        "fencing seen in the loser's log": fenced,
        "stale outputs put": stale,
        "checkpoint files of the loser put": late,
    }
    figure.require(fenced == rounds, f"only {fenced} losers said that they lost their lease")
    figure.require(stale == 0, f"{stale} stale outputs were put")
    return figure


def r14(asked: Asked) -> Figure:
    """Cancels at random moments of a request's life."""
    figure = Figure("R14")
    times: list[float] = []
    cancelled: list[str] = []
    too_late = 0
    with scene(figure, asked.seed, TRAINERS, hooks=True) as on:
        for number in range(asked.times(6)):
            one = on.training(number_of_steps=300) if number % 3 != 1 else on.check()
            if number % 3 == 0:
                on.stack.until(lambda: on.step(one) > 0, 120.0, "a step")
            time.sleep(on.rng.uniform(0.0, 3.0))
            answered = on.cancel(one)
            too_late += answered == 400
            cancelled.append(one.request_id)
            took = seconds_until(lambda: on.ended(one), 60.0)
            figure.require(took is not None, "a cancelled request did not end")
            times.append(took or 60.0)
        on.judged(figure, tuple(cancelled))
    figure.numbers |= {
        "cancels": len(cancelled),
        "came too late": too_late,
        "longest until it ended, s": round(max(times), 1),
    }
    figure.require(max(times) <= 10.0, f"a cancel took {max(times):.1f} s")
    return figure


COMPLETION = (
    "store.before_put",
    "store.after_put",
    "complete.before",
    "complete.before_ledger",
    "complete.before_commit",
    "complete.after_commit",
)
"""The six points around a completion."""


def r23(asked: Asked) -> Figure:
    """SIGKILL at each point around the completion, on jobs that do nothing else."""
    figure = Figure("R23")
    rounds = asked.times(3)
    with scene(figure, asked.seed, light(2)) as on:
        for place in COMPLETION:
            for _ in range(rounds):
                on.stack.arm(place, "killgroup")
                one = on.check()
                on.until_ended(one)
                row = on.row(one)
                completed = [a for a in on.attempts(one) if a.outcome == Outcome.COMPLETED]
                figure.require(
                    len(completed) == 1 and row.billable_units == 100,
                    f"{place}: {len(completed)} completions, {row.billable_units} units",
                )
                assert row.result_body is not None
                key = row.result_body["lora_file"]["key"]
                content = b"".join(on.stack.storage.open_range(key)).decode()
                figure.require(
                    content == f"{one.request_id} {completed[0].number}",
                    f"{place}: the file is {content!r}",
                )
        fired = on.stack.fired()
    figure.numbers |= {"points": len(COMPLETION), "kills": len(fired), "rounds": rounds}
    figure.require(len(fired) == rounds * len(COMPLETION), f"only {len(fired)} fired")
    return figure


GENERATION_END = (
    "generate.job_made",
    "generate.made",
    *COMPLETION,
)
"""The same points, reached by a real generation, and two before them."""


def r23_generations(asked: Asked) -> Figure:
    """SIGKILL of a gpu worker's process group at each point of a generation's end."""
    figure = Figure("R23 of generations")
    rounds = asked.times(1)
    expected = {f"{place} killgroup": rounds for place in GENERATION_END}
    with scene(figure, asked.seed, TRAINERS, hooks=True) as on:
        for place in GENERATION_END:
            for _ in range(rounds):
                one = _dying_at(on, place)
                on.until_ended(one)
                outcomes = [a.outcome for a in on.attempts(one, Stage.TRAIN)]
                killed = [] if place == "complete.after_commit" else [Outcome.LOST]
                figure.require(
                    outcomes == [*killed, Outcome.COMPLETED], f"{place}: it ended as {outcomes}"
                )
        # The last one is killed a moment after it has ended.
        seconds_until(lambda: _killed_at(on) == expected, 10.0)
        killed_at = _killed_at(on)
        on.judged(figure)
    figure.numbers |= {
        "points": len(GENERATION_END),
        "kills": killed_at.total(),
        "rounds": rounds,
    }
    figure.require(killed_at == expected, f"killed at {killed_at}")
    return figure


def _killed_at(on: Scene) -> Counter[str]:
    return Counter(line for line in on.stack.fired() if line.endswith("killgroup"))


def _dying_at(on: Scene, place: str) -> Accepted:
    """A generation whose gpu worker will die there. The stage before puts files into the store too,
    so that its places are armed once the video is made."""
    if not place.startswith("store."):
        on.stack.arm(place, "killgroup")
        return on.generation()
    waiting = "generate.made sleep:2"
    before = on.stack.fired().count(waiting)
    on.stack.arm(*waiting.split())
    one = on.generation()
    on.stack.until(lambda: on.stack.fired().count(waiting) > before, 120.0, "the video")
    on.stack.arm(place, "killgroup")
    return one


def light(workers: int) -> Layout:
    """Workers whose jobs take no work (`benchmarks.queue_worker`)."""
    env = {"REELSMITH_LEASE_S": "3", "REELSMITH_HEARTBEAT_S": "1", **LIGHT}
    env["REELSMITH_BENCH_MARKS"] = os.devnull
    return Layout(
        gateways=1, workers=workers, env=env, queues=("cpu",),
        worker_app="benchmarks.queue_worker",
    )  # fmt: skip


def _trainer(on: Scene) -> bool:
    return any(part.child(b"trainer") for part in on.stack.workers["gpu"])


def _kill_trainer(on: Scene) -> bool:
    for part in on.stack.workers["gpu"]:
        if (pid := part.child(b"trainer")) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return True
    return False


def _worker_of(on: Scene, one: Accepted) -> Part | None:
    """The part that trains ``one`` right now."""
    row = on.row(one)
    if row.worker is None or row.stage != Stage.TRAIN:
        return None
    pid = int(row.worker.rpartition(":")[2])
    for part in on.stack.workers["gpu"]:
        if not part.dead and pid in (part.pid, *descendants(part.pid)):
            return part
    return None


_RESUMED = re.compile(r"from step (\d+)")


def _lines(on: Scene, one: Accepted) -> list[str]:
    reply = patiently(lambda: on.stack.http.get(one.status_url, params={"logs": 1}))
    return [line["message"] for line in reply.json()["logs"]]


def _went_on(on: Scene, one: Accepted) -> bool:
    """Whether an attempt has said where it begins since the last one was lost."""
    since: list[str] = []
    for line in _lines(on, one):
        since = [] if "worker was lost" in line else [*since, line]
    return any(_RESUMED.search(line) for line in since)


def _resumed_at(on: Scene, one: Accepted) -> int:
    found = [match[1] for line in _lines(on, one) if (match := _RESUMED.search(line))]
    return int(found[-1]) if found else 0


def _frozen_at(on: Scene, one: Accepted, phase: str) -> Part:
    """Its worker, stopped in that phase."""
    if phase == "steps":
        on.stack.until(lambda: on.step(one) >= 10, 120.0, "step 10")
        time.sleep(on.rng.uniform(0.0, 2.0))
    else:
        on.stack.arm(phase, "stop")
        on.stack.until(lambda: any(phase in line for line in on.stack.fired()), 120.0, phase)
    on.stack.failpoints.with_name("failpoints.fired").unlink(missing_ok=True)
    part = on.stack.until(lambda: _worker_of(on, one), 10.0, "its worker")
    assert isinstance(part, Part)
    part.freeze()
    return part
