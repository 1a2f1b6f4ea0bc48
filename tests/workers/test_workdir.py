"""Scratch folders vanish with their process, kill -9 included."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from workers.workdir import sweep, work_dir

HOLD = """
import sys, time
from pathlib import Path
from workers.workdir import work_dir
with work_dir(Path(sys.argv[1]), "held") as folder:
    (folder / "big").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_removed_at_the_end(tmp_path: Path) -> None:
    with work_dir(tmp_path, "a-1") as folder:
        (folder / "file").write_text("x")
        assert folder.name.startswith("a-1-")
    assert list(tmp_path.iterdir()) == []


def test_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), work_dir(tmp_path, "a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_sweep_spares_what_is_in_use(tmp_path: Path) -> None:
    with work_dir(tmp_path, "mine") as mine:
        assert sweep(tmp_path) == []
        assert mine.exists()


def test_next_one_sweeps_after_kill(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (held,) = tmp_path.iterdir()
    assert sweep(tmp_path) == []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with work_dir(tmp_path, "next"):
        assert not held.exists()
