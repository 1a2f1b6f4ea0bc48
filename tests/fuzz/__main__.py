"""Fuzz with atheris: every target for a while, each in a process of its own.

    python -m tests.fuzz              # all, FUZZ_S seconds each (60)
    python -m tests.fuzz zip FILE     # one target, on an input that failed

An input that fails is left in the current folder as ``crash-*``.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

FUZZ_S = int(os.environ.get("FUZZ_S", "60"))
MAX_INPUT_BYTES = 4096


def run_all() -> int:
    from tests.fuzz.targets import TARGETS

    worst = 0
    for name, (_, seeds) in TARGETS.items():
        with tempfile.TemporaryDirectory() as corpus:
            for number, seed in enumerate(seeds()):
                (Path(corpus) / f"seed-{number}").write_bytes(seed)
            print(f"== {name}, {FUZZ_S} s", flush=True)
            limits = [f"-max_total_time={FUZZ_S}", f"-max_len={MAX_INPUT_BYTES}", "-verbosity=0"]
            command = [sys.executable, "-m", "tests.fuzz", name, *limits, corpus]
            worst = max(worst, subprocess.run(command, check=False).returncode)
    return worst


def run_one(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["app.fetch", "preprocessing", "trainer"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name][0])
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_one(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(run_all())
