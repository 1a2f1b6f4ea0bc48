"""Child processes that do the heavy work, and their events on the way to the database."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from preprocessing.failpoints import FILE as FAILPOINTS
from preprocessing.lifetime import PARENT_PID

POLL_S = 0.2
"""How often a running child is looked at: its events, the lease, the cancel flag."""

HARMLESS = frozenset(
    {"HOME", "LANG", "LC_ALL", "OMP_NUM_THREADS", "PATH", "PYTHONPATH", "TMPDIR", "TZ"}
)
"""Environment variables that a child may see."""

_TRAINER_NAMES = frozenset(
    {
        *("CC", "CXX", "LD_LIBRARY_PATH", "LD_PRELOAD", "LOGNAME", "USER", "XDG_CACHE_HOME"),
        *("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy"),
        *("REQUESTS_CA_BUNDLE", "SSL_CERT_DIR", "SSL_CERT_FILE", FAILPOINTS),
    }
)
_TRAINER_PREFIXES = (
    *("CUDA_", "HF_", "KMP_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "OPENBLAS_", "PYTHON"),
    *("PYTORCH_", "TORCH", "TRITON_"),
)
"""What the libraries below a training are set by, besides what is harmless."""

STDERR_TAIL_CHARS = 4000
"""Of a child that died, kept for the worker's own log; users never see it."""


def kill_group(process: "subprocess.Popen[Any]") -> None:
    """End a child that leads its own session, with all its children, and reap it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def bare_environment() -> dict[str, str]:
    """For a process that decodes foreign files: no secret of the service is in it."""
    kept = {name: value for name, value in os.environ.items() if name in HARMLESS}
    return {**kept, PARENT_PID: str(os.getpid())}


def trainer_environment() -> dict[str, str]:
    """For the trainer: what its libraries are set by, and none of the service's own settings. All
    that it needs to know of a job is in the job's directory. `HF_TOKEN` stays: the trainer
    downloads the base model.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _TRAINER_NAMES or name.startswith(_TRAINER_PREFIXES)
    }
    return {**kept, **bare_environment()}


class EventTail:
    """Reads the whole lines that were appended to an events file since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> Iterator[dict[str, Any]]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return  # being written
                    self._offset += len(line)
                    yield json.loads(line)
        except FileNotFoundError:
            return


class ChildProcess:
    """`python -m MODULE ...` of one of the libraries, in a session of its own.

    Exit: 0 done, 2 refused (the user's fault, said in its report), 3 the disk is full, anything
    else ours.
    """

    REFUSED = 2
    DISK_FULL = 3

    def __init__(self, module: str, arguments: list[str], folder: Path) -> None:
        self.stderr = folder / f"{module}.stderr"
        with self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=bare_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=err,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        return self.process.poll()

    def stderr_tail(self) -> str:
        return self.stderr.read_text(errors="replace")[-STDERR_TAIL_CHARS:]

    def kill(self) -> None:
        kill_group(self.process)


def _launcher(num_processes: int) -> list[str]:
    if num_processes == 1:
        return []
    count = f"--nproc-per-node={num_processes}"
    return ["-m", "torch.distributed.run", "--standalone", count]


class TrainerProcess:
    """`python -m trainer serve`: lives between jobs with the base model loaded.

    One job at a time: `submit` hands it a job directory, `poll` says how it stands.
    """

    def __init__(self, stderr: Path, num_gpus: int = 1) -> None:
        """``num_gpus``: one process for each, by `torchrun`; they train every job together."""
        stderr.parent.mkdir(parents=True, exist_ok=True)
        self.stderr = stderr
        with stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, *_launcher(num_gpus), "-m", "trainer", "serve"],
                env=trainer_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                bufsize=1,
                start_new_session=True,
            )
        self._answers: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, name="trainer-stdout", daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as answers:
            for line in answers:
                self._answers.put(line)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def submit(self, job_dir: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"job_dir": str(job_dir)}) + "\n")
        self.process.stdin.flush()

    def answered(self) -> bool:
        """Whether the job's answer has come (its result is in the job directory then)."""
        try:
            self._answers.get_nowait()
        except Empty:
            return False
        return True

    def stderr_tail(self) -> str:
        return self.stderr.read_text(errors="replace")[-STDERR_TAIL_CHARS:]

    def kill(self) -> None:
        kill_group(self.process)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
