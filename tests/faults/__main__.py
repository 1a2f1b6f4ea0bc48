"""Break the real service by a plan, and say what became of every request.

    python -m tests.faults                       everything, with the rounds of each by itself
    python -m tests.faults chaos --seed 7        one plan; a failing one is run again like this
    python -m tests.faults chaos --minutes 30    one plan after the other
    python -m tests.faults r8 r23 --rounds 30    goals of docs/reliability.md by name

Exits with 1 when anything was found that must not be.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import chaos, cut_goals, gateway_goals, load_goals, worker_goals
from tests.faults.chaos import Load, Run
from tests.faults.scene import Asked, Figure
from tests.faults.stack import Layout

GOALS: dict[str, Callable[[Asked], Figure]] = {
    "r1": worker_goals.r1,
    "r1-queue": worker_goals.r1_queue,
    "r1-defaults": worker_goals.r1_defaults,
    "r2": worker_goals.r2,
    "r3": gateway_goals.r3,
    "r4": gateway_goals.r4,
    "r5": cut_goals.r5,
    "r6": worker_goals.r6,
    "r7": cut_goals.r7,
    "r8": worker_goals.r8,
    "r9": cut_goals.r9,
    "r10": cut_goals.r10,
    "r12": gateway_goals.r12,
    "r14": worker_goals.r14,
    "r15": gateway_goals.r15,
    "r16": cut_goals.r16,
    "r19": load_goals.r19,
    "r20": gateway_goals.r20,
    "r21": load_goals.r21,
    "r23": worker_goals.r23,
    "r23-generations": worker_goals.r23_generations,
    "r24": gateway_goals.r24,
}


def main() -> int:
    asked = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended, it ends what it started
    Path(asked.out).parent.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name in asked.names:
        if name == "chaos":
            bad += _chaos(asked)
        else:
            bad += _goal(name, asked)
    return min(bad, 1)


def _goal(name: str, asked: argparse.Namespace) -> int:
    again = f"python -m tests.faults {name} --seed {asked.seed} --rounds {asked.rounds}"
    if asked.down_s != Asked.down_s:
        again += f" --down-s {asked.down_s:g}"
    print(f"{name}: {again}", flush=True)
    began = time.monotonic()
    try:
        figure = GOALS[name](Asked(asked.seed, asked.rounds, asked.postgres, asked.down_s))
    except AssertionError as error:
        figure = Figure(name.upper(), findings=[str(error)])
    figure.numbers["seconds"] = round(time.monotonic() - began)
    _report(
        asked, {"goal": figure.goal, **figure.numbers, "findings": figure.findings, "by": again}
    )
    return bool(figure.findings)


def _chaos(asked: argparse.Namespace) -> int:
    ends, seed, bad = time.monotonic() + 60 * asked.minutes, asked.seed, 0
    total: Counter[str] = Counter()
    while True:
        options = [f"--faults {asked.faults}", f"--seconds {asked.seconds:g}"]
        options += [f"--trainings {asked.trainings}", f"--generations {asked.generations}"]
        options += [f"--checks {asked.checks}"]
        options += [f"--broker {asked.broker}", f"--store {asked.store}"]
        options += ["--postgres URL"] if asked.postgres else []
        again = f"python -m tests.faults chaos --seed {seed} {' '.join(options)}"
        print(again, flush=True)
        run = chaos.run(seed, _layout(asked), _load(asked), lambda text: print(text, flush=True))
        total += run.done
        _report(asked, {**_of(run), "by": again})
        bad += not run.ok
        seed += 1
        if time.monotonic() > ends:
            print(f"{seed - asked.seed} plans, {bad} with findings; {dict(total)}")
            return bad


def _of(run: Run) -> dict[str, Any]:
    verdict = run.verdict
    return {
        "goal": "chaos",
        "seed": run.seed,
        "requests": verdict.accepted,
        "lost": verdict.lost,
        "ends": dict(verdict.ended),
        "attempts": dict(verdict.attempts),
        "webhooks": verdict.webhooks,
        "faults": dict(run.done),
        "failpoints": dict(run.fired),
        "swept": verdict.swept,
        "told": verdict.told,
        "seconds": round(run.seconds),
        "findings": verdict.findings,
    }


def _report(asked: argparse.Namespace, found: dict[str, Any]) -> None:
    """On the screen, and a line of JSON in the file of results."""
    verdict = "FOUND" if found["findings"] else "ok"
    print(f"{verdict}: {json.dumps(found, default=str)}\n", flush=True)
    with Path(asked.out).open("a") as file:
        file.write(json.dumps(found, default=str) + "\n")


def _layout(asked: argparse.Namespace) -> Layout:
    return Layout(broker=asked.broker, store=asked.store, postgres=asked.postgres)


def _load(asked: argparse.Namespace) -> Load:
    return Load(
        asked.trainings,
        asked.generations,
        asked.checks,
        seconds=asked.seconds,
        faults=asked.faults,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ["chaos", *GOALS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=0, help="0: what each goal has by itself")
    parser.add_argument("--minutes", type=float, default=0.0, help="of chaos; 0: one plan")
    parser.add_argument("--faults", type=int, default=20, help="of one plan")
    parser.add_argument("--seconds", type=float, default=60.0, help="over which they come")
    parser.add_argument("--trainings", type=int, default=2)
    parser.add_argument("--generations", type=int, default=1)
    parser.add_argument("--checks", type=int, default=5)
    parser.add_argument("--down-s", type=float, default=Asked.down_s, help="of the store, in r10")
    redis = "redis" if shutil.which("redis-server") else "files"
    parser.add_argument("--broker", choices=["redis", "files"], default=redis)
    parser.add_argument("--store", choices=["s3", "local"], default="s3")
    parser.add_argument("--postgres", help="URL of a server; without it SQLite")
    parser.add_argument("--out", default="data/faults.jsonl", help="where figures are appended")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    asked.names = asked.names or known
    return asked


if __name__ == "__main__":
    sys.exit(main())
