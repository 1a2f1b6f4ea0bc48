"""Failpoints: each action, how often, and that nothing happens where none is armed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
REACH = """
import sys
from preprocessing.failpoints import reach
for name in sys.argv[1:]:
    reach(name)
"""


def reached(file: Path | None, *places: str) -> "subprocess.CompletedProcess[str]":
    env = {name: value for name, value in os.environ.items() if "FAILPOINTS" not in name}
    if file is not None:
        env["REELSMITH_FAILPOINTS"] = str(file)
    return subprocess.run(
        [sys.executable, "-c", REACH, *places],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("action", ["kill", "killgroup", "raise", "enospc", "sleep:0.2"])
def test_each_action_once(tmp_path: Path, action: str) -> None:
    file = tmp_path / "armed"
    file.write_text(f"elsewhere kill 1\nhere {action} 1\n")
    started = time.monotonic()
    done = reached(file, "here")
    seconds = time.monotonic() - started
    if action.startswith("kill"):
        assert done.returncode == -signal.SIGKILL
    elif action.startswith("sleep"):
        assert done.returncode == 0
        assert seconds > 0.2
    else:
        error = {"raise": "FailpointError: here", "enospc": "No space left on device"}[action]
        assert error in done.stderr
    assert re.fullmatch(rf"here {action} \d+\n", (tmp_path / "armed.fired").read_text())
    assert file.read_text() == f"elsewhere kill 1\nhere {action} 0\n"
    assert reached(file, "here").returncode == 0, "its times are used up"


def test_off_without_the_variable_and_without_the_file(tmp_path: Path) -> None:
    assert reached(None, "here").returncode == 0
    assert reached(tmp_path / "none", "here").returncode == 0


def test_every_place_has_a_name_of_its_own() -> None:
    """A name that is in the code twice would fire at the wrong place."""
    found = [
        name
        for folder in ("app", "workers", "trainer", "preprocessing")
        for file in (ROOT / folder).rglob("*.py")
        for name in re.findall(r'reach\("([a-z_.]+)"\)', file.read_text())
    ]
    both_stores = {"store.before_put", "store.between", "store.after_put"}
    assert {name for name in found if found.count(name) > 1} == both_stores
    assert "complete.before_commit" in found
