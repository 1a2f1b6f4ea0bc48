"""fal's own clients as processes: unmodified, and set up as `fal-protocol.md` 1.7 says."""

import json
import os
import queue
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIMIT_S = 120.0


class Running:
    """A client at work. It sends values by ``tell``, one JSON line each."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self._process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._told: queue.Queue[Any] = queue.Queue()
        self._all: list[Any] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            value = json.loads(line)
            self._all.append(value)
            self._told.put(value)

    def told(self, limit_s: float = LIMIT_S) -> Any:
        """The next value that it sends."""
        while True:
            try:
                return self._told.get(timeout=min(limit_s, 0.5))
            except queue.Empty:
                limit_s -= 0.5
                gone = self._process.poll() is not None and self._told.empty()
                if gone or limit_s <= 0:
                    self.end(0.1)
                    raise AssertionError("the client told nothing more") from None

    def end(self, limit_s: float = LIMIT_S) -> list[Any]:
        """Everything that it sent, once it has ended well."""
        try:
            code: int | str = self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            code = f"not within {limit_s} s"
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()
        with self._errors as errors:
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        assert code == 0, f"{code}\n{text}\nit told: {self._all}"
        return self._all


class Python:
    """`fal_client`, led here by ``way`` alone: variables of its environment (1.7 a, b)."""

    def __init__(self, way: Mapping[str, str], ca: Path, home: Path) -> None:
        self._way = way
        self._ca = ca
        self._home = home

    def start(self, script: str, *, key: str | None, **given: Any) -> Running:
        return self.run_file(HERE / "python_client.py", script, key=key, **given)

    def run_file(
        self, file: Path, script: str, *, key: str | None, flags: Sequence[str] = (), **given: Any
    ) -> Running:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),  # a login in ~/.fal would be used
            **self._way,
            "SSL_CERT_FILE": str(self._ca),
            **({} if key is None else {"FAL_KEY": key}),
        }
        return Running(
            [sys.executable, *flags, str(file), textwrap.dedent(script), json.dumps(given)], env
        )

    def __call__(self, script: str, *, key: str | None, **given: Any) -> Any:
        """The last value that the script sent."""
        return self.start(script, key=key, **given).end()[-1]


class JavaScript:
    """`@fal-ai/client` on Node. ``folder`` has its packages."""

    def __init__(self, folder: Path, ca: Path, base: str) -> None:
        self._folder = folder
        self._ca = ca
        self._base = base

    def start(self, script: str, *, key: str | None, **given: Any) -> Running:
        env = {"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": str(self._ca)}
        given = {"base": self._base, "key": key, **given}
        runner = str(self._folder / "js_client.mjs")
        return Running(["node", runner, textwrap.dedent(script), json.dumps(given)], env)

    def __call__(self, script: str, *, key: str | None, **given: Any) -> Any:
        """The last value that the script sent."""
        return self.start(script, key=key, **given).end()[-1]
