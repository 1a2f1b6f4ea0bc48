"""What a decoder that was taken over would try. Runs inside a child of the preparation's pool."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path


def attempt(action: Callable[[], object]) -> str:
    """``ok``, or the name of the error that came of it."""
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "ok"


def escape(_name: str, folder: Path, other: Path, port: int, parent: int) -> dict[str, str]:
    """Each way out, and what became of it. ``folder`` is its own, ``other`` another job's."""
    return {
        "own file": attempt(lambda: (folder / "mine").write_bytes(b"x")),
        "libraries": attempt(lambda: Path(os.__file__).read_bytes()),
        "tcp": attempt(lambda: socket.create_connection(("127.0.0.1", port), 5).close()),
        "udp": attempt(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9))
        ),
        "passwd": attempt(lambda: Path("/etc/passwd").read_bytes()),
        "read another job": attempt(lambda: (other / "secret").read_bytes()),
        "list another job": attempt(lambda: list(other.iterdir())),
        "write another job": attempt(lambda: (other / "mine").write_bytes(b"x")),
        "link another job": attempt(lambda: os.link(other / "secret", folder / "secret")),
        "environment of the parent": attempt(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
        "run a program": attempt(lambda: subprocess.run(["/bin/true"], check=False)),
        "signal the parent": attempt(lambda: os.kill(parent, signal.SIGCONT)),
    }
