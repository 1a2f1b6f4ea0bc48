"""Child processes: a crash costs one clip, and no child outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from preprocessing.errors import MediaError
from preprocessing.pool import MAX_ADDRESS_SPACE_BYTES, Pool


def double(_name: str, number: int) -> int:
    return 2 * number


def answer(name: str, kind: str) -> str:
    """Stands for a decoder: works, refuses, crashes, or runs out of memory."""
    match kind:
        case "refuse":
            raise MediaError(f"{name} is odd", reason="odd", ctx={"frames": 3})
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "out of memory":
            raise MemoryError
        case "bug":
            raise ZeroDivisionError
    return kind.upper()


def test_answers_carry_their_index() -> None:
    with Pool(2) as pool:
        tasks = [("clip", number) for number in range(20)]
        assert dict(pool.run(double, tasks)) == {number: 2 * number for number in range(20)}
        assert list(pool.run(double, [])) == []


def test_a_crash_costs_one_clip() -> None:
    kinds = ["a", "refuse", "crash", "out of memory", "b", "c"]
    with Pool(2) as pool:
        answers = dict(pool.run(answer, [(f"{kind}.mp4", kind) for kind in kinds]))
        assert [answers[index] for index in (0, 4, 5)] == ["A", "B", "C"]
        refused, crashed, large = answers[1], answers[2], answers[3]
        assert isinstance(refused, MediaError)
        assert (refused.reason, refused.ctx) == ("odd", {"frames": 3})
        assert isinstance(crashed, MediaError)
        assert crashed.reason == "crashed"
        assert "crash.mp4 can't be decoded" in crashed.message
        assert isinstance(large, MediaError)
        assert "out of memory.mp4 needs too much memory" in large.message
        assert list(pool.run(answer, [("d", "d")])) == [(0, "D")], "the pool goes on"


def test_many_clips_after_a_crash() -> None:
    kinds = ["crash", *("a" for _ in range(30)), "crash"]
    with Pool(2) as pool:
        answers = dict(pool.run(answer, [("clip", kind) for kind in kinds]))
    assert sorted(i for i, given in answers.items() if given != "A") == [0, 31]
    assert len(answers) == 32


def test_a_bug_is_not_the_clips_fault() -> None:
    with Pool(1) as pool, pytest.raises(ZeroDivisionError):
        list(pool.run(answer, [("a.mp4", "bug")]))


def limits(_name: str) -> tuple[int, int]:
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0], resource.getrlimit(resource.RLIMIT_CORE)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not limit address space")
def test_children_are_limited() -> None:
    with Pool(1) as pool:
        assert dict(pool.run(limits, [("a.mp4",)])) == {0: (MAX_ADDRESS_SPACE_BYTES, 0)}


def note_and_sleep(_name: str, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


PARENT = """
from pathlib import Path
from preprocessing.pool import Pool
from tests.preprocessing.test_pool import note_and_sleep

if __name__ == "__main__":
    with Pool(2) as pool:
        list(pool.run(note_and_sleep, [("a", Path({folder!r})), ("b", Path({folder!r}))]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=lambda sent: sent.name)
def test_children_end_with_their_parent(sent: signal.Signals, tmp_path: Path) -> None:
    """Called from a script, too: children start although its main module is a file."""
    pids = tmp_path / "pids"
    pids.mkdir()
    script = tmp_path / "script.py"
    script.write_text(PARENT.format(folder=str(pids)))
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, script], env=environment) as parent:
        try:
            assert within(60, lambda: len(list(pids.iterdir())) == 2)
        finally:
            parent.send_signal(sent)
        parent.wait(timeout=30)
        children = [int(path.name) for path in pids.iterdir()]
        assert within(20, lambda: not any(is_running(pid) for pid in children))


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
