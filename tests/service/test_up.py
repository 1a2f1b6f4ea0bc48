"""``reelsmith up`` as its user ends it, or loses it: nothing of it goes on alone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from app.dev import free_port

START_LIMIT_S = 90.0
END_LIMIT_S = 30.0


@contextmanager
def up(folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """The command in a session of its own, once it serves."""
    env = {name: value for name, value in os.environ.items() if "REELSMITH" not in name}
    env |= {"REELSMITH_DATA_DIR": str(folder), "REELSMITH_PORT": str(port)}
    command = [sys.executable, "-m", "app.cli", "up"]
    with (folder.parent / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while b"Ctrl-C" not in (folder.parent / "up.log").read_bytes():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield process
    finally:
        for pid in of(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def of(folder: Path) -> list[int]:
    """Processes that were given this data folder, or work in it (Redis hides what it was given)."""
    mark = f"REELSMITH_DATA_DIR={folder}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is not ours
            given = mark in (entry / "environ").read_bytes().split(b"\0")
            if given or folder in (entry / "cwd").readlink().parents:
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word to the children is Linux'")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP], ids=["killed", "hung up"])
def test_nothing_goes_on_alone(tmp_path: Path, number: signal.Signals) -> None:
    folder, port = tmp_path / "data", free_port()
    folder.mkdir()
    with up(folder, port) as process:
        assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
        assert len(of(folder)) >= 5, "itself, Redis, the gateway, two workers"
        process.send_signal(number)
        process.wait(END_LIMIT_S)
        deadline = time.monotonic() + END_LIMIT_S
        while left := of(folder):
            assert time.monotonic() < deadline, left
            time.sleep(0.2)


def refused(folder: Path, port: int) -> str:
    """What the command says instead of starting."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "up"],
        env={**os.environ, "REELSMITH_DATA_DIR": str(folder), "REELSMITH_PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=START_LIMIT_S,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_that_is_taken_is_said_in_a_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert f"port {port} of 127.0.0.1 can't be used" in refused(tmp_path, port)


def test_one_service_for_a_folder(tmp_path: Path) -> None:
    """A second one is refused while the first lives, and its end, a kill too, makes room."""
    folder = tmp_path / "data"
    folder.mkdir()
    with up(folder, free_port()) as process:
        assert f"another service runs in {folder}" in refused(folder, free_port())
        process.kill()
        process.wait(END_LIMIT_S)
    with up(folder, free_port()):
        pass
