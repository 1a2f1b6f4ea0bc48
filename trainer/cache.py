"""What was encoded, on disk: found again by content, and deleted when the folder is too large.

    CACHE/latents/<hash>.safetensors    video [1, N, 128]; audio [1, T, C] where trained; fp32
    CACHE/contexts/<hash>.safetensors   video [S, Dv], audio [S, Da]: connector output of one prompt
    CACHE/claims/<uuid>.claim           hashes that a living job needs; locked while it lives

A hash covers the bytes that were encoded, the model and the precision, so a second training of the
same clips with another rank or learning rate encodes nothing, and a stale file is never found.
Files appear whole (written aside, renamed); several jobs may share a cache.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.footage import Footage
from trainer.model import BaseModel
from trainer.tensor_file import save_tensors
from trainer.text import PromptContext

MAX_CACHE_BYTES: Final = 50 * 1024**3
"""Bytes of latents and contexts that a new job leaves of earlier ones: 3000 samples of the real
model (16 MB each at 768x768 and 89 frames, with its caption), in as much space as the model's own
weights take."""

_ENCODING_VERSION = "2"
"""Raised when encoding changes: nothing cached before is then found."""


@dataclass(frozen=True)
class SampleLatents:
    """One sample, encoded: ``video`` [1, N, 128], ``audio`` [1, T, C] or None; fp32, on the CPU."""

    video: Tensor
    audio: Tensor | None


class EncodedCache:
    """The cache folder, seen through one model at one precision."""

    def __init__(self, cache: Path, base: BaseModel, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._latents = cache / "latents"
        self._contexts = cache / "contexts"
        self._claims = cache / "claims"
        self._max_bytes = max_bytes
        self._key = f"{_ENCODING_VERSION} {base.id} {base.fingerprint} {base.dtype}"

    def latents_path(self, clip: Footage) -> Path:
        return self._latents / self._name(clip.hash)

    def context_path(self, prompt: str) -> Path:
        return self._contexts / self._name(prompt)

    def latents(self, clip: Footage) -> SampleLatents:
        tensors = load_file(self.latents_path(clip))
        return SampleLatents(tensors["video"], tensors.get("audio"))

    def context(self, prompt: str) -> PromptContext:
        return PromptContext(**load_file(self.context_path(prompt)))

    @contextmanager
    def claim(self, clips: Iterable[Footage], prompts: Iterable[str]) -> Iterator[None]:
        """Inside, no job deletes what belongs to ``clips`` and ``prompts``, encoded or yet to be.

        On entry that counts as used now, and the least recently used rest is deleted until the
        cache has at most ``max_bytes``. What a living job claims stays even if that is more; what
        a killed one claimed does not. Encode after entering: what is missing then, was before.
        """
        paths = {*map(self.latents_path, clips), *map(self.context_path, prompts)}
        self._claims.mkdir(parents=True, exist_ok=True)
        path = self._claims / f"{uuid4().hex}.claim"
        with ExitStack() as held:
            with self._alone():
                file = held.enter_context(path.open("x", encoding="ascii"))
                held.callback(path.unlink, missing_ok=True)
                fcntl.flock(file, fcntl.LOCK_EX)
                file.writelines(f"{_digest(wanted)}\n" for wanted in sorted(paths))
                file.flush()
                for wanted in paths:
                    with suppress(FileNotFoundError):
                        os.utime(wanted)
                self._shrink(self._claimed())
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process claims or deletes meanwhile."""
        with (self._claims / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _claimed(self) -> set[str]:
        """What all living jobs need; a claim that nobody has locked is a dead one's."""
        claimed: set[str] = set()
        for path in self._claims.glob("*.claim"):
            with suppress(FileNotFoundError), path.open(encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                except BlockingIOError:
                    claimed.update(file.read().split())
        return claimed

    def _shrink(self, claimed: set[str]) -> None:
        files: list[tuple[int, int, Path]] = []
        for folder in (self._latents, self._contexts):
            for path in folder.glob("*"):
                with suppress(FileNotFoundError):  # another job's part, renamed meanwhile
                    stat = path.stat()
                    files.append((stat.st_mtime_ns, stat.st_size, path))
        excess = sum(size for _, size, _ in files) - self._max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                break
            if _digest(path) not in claimed:
                path.unlink(missing_ok=True)
                excess -= size

    def _name(self, content: str) -> str:
        digest = hashlib.sha256(f"{self._key}\0{content}".encode())
        return f"{digest.hexdigest()}.safetensors"


def is_whole(path: Path) -> bool:
    """A header that fits the file's size; what a crash or a full disk left is encoded again."""
    try:
        with safe_open(path, framework="pt") as file:
            return bool(file.keys())
    except (FileNotFoundError, SafetensorError):
        return False


def save_whole(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write ``tensors`` to ``path``: a reader finds all of them or no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_tensors(tensors, aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    """The hash in a file's name, be it whole or the part of one."""
    return path.name.removeprefix(".").partition(".")[0]
