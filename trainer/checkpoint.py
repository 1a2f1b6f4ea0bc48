"""Checkpoints: everything a training needs to go on, elsewhere, bit for bit (`reliability.md` R17).

    step-000250/adapter.safetensors     fp32, keys of `trainer.adapter`
    step-000250/optimizer.safetensors   AdamW's moments and step counts, by parameter number
    step-000250/state.json              step, and the fingerprint of spec, dataset and model
    step-000250/metrics.jsonl           the log so far
    step-000250/previews/               the previews so far
    step-000250/manifest.json           size and sha256 of each file above; written last

Random numbers, data order and learning rate are functions of seed and step, so they need no state.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from preprocessing.failpoints import reach
from trainer.errors import CheckpointError
from trainer.job import CHECKPOINT_MANIFEST, METRICS_FILE
from trainer.tensor_file import save_tensors

KEEP = 2
"""Checkpoints that stay: the newest, and one before in case that is damaged."""

ADAPTER_FILE = "adapter.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
PREVIEWS_FOLDER = "previews"

_PREFIX = "step-"


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    step: int
    fingerprint: str


@dataclass(frozen=True)
class Checkpoint:
    """One that was read and verified."""

    path: Path
    step: int
    """Updates in it."""
    adapter: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]

    def restore_files(self, metrics: Path, previews: Path) -> None:
        """Put the log and the previews of the training so far back into the outputs."""
        if (self.path / METRICS_FILE).exists():
            shutil.copyfile(self.path / METRICS_FILE, metrics)
        if (self.path / PREVIEWS_FOLDER).is_dir():
            shutil.copytree(self.path / PREVIEWS_FOLDER, previews, dirs_exist_ok=True)


class _DamagedError(Exception):
    """Not what was written."""


@dataclass(frozen=True)
class Snapshot:
    """A training as it was after ``step`` updates: in host memory, and ``aside``, in files that
    nobody else changes. Not a checkpoint before it is written."""

    step: int
    path: Path
    """Of the checkpoint it becomes."""
    aside: Path
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def take_snapshot(
    folder: Path,
    *,
    step: int,
    fingerprint: str,
    adapter: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    metrics: Path,
    previews: Path,
) -> Snapshot:
    """What `write_checkpoint` needs, copied, so that the training can go on meanwhile."""
    path = folder / f"{_PREFIX}{step:06d}"
    aside = folder / f".{path.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    state = _State(step=step, fingerprint=fingerprint)
    (aside / STATE_FILE).write_text(state.model_dump_json(), encoding="utf-8")
    if metrics.exists():
        shutil.copyfile(metrics, aside / METRICS_FILE)
    if previews.is_dir():
        shutil.copytree(previews, aside / PREVIEWS_FOLDER)
    return Snapshot(step, path, aside, _on_host(adapter), _on_host(_optimizer_tensors(optimizer)))


def write_checkpoint(snapshot: Snapshot) -> Path:
    """Write ``folder``/step-XXXXXX: whole when it has that name. Older than `KEEP` are removed."""
    path, aside = snapshot.path, snapshot.aside
    folder = path.parent
    save_tensors(snapshot.adapter, aside / ADAPTER_FILE)
    save_tensors(snapshot.optimizer, aside / OPTIMIZER_FILE)
    files = sorted(file for file in aside.rglob("*") if file.is_file())
    listed = {file.relative_to(aside).as_posix(): _facts(file) for file in files}
    manifest = aside / CHECKPOINT_MANIFEST
    manifest.write_text(json.dumps({"version": 1, "files": listed}, indent=2), encoding="utf-8")
    for file in [*files, manifest, aside]:
        _fsync(file)
    shutil.rmtree(path, ignore_errors=True)
    reach("checkpoint.before_rename")
    aside.rename(path)
    _fsync(folder)
    reach("checkpoint.after_rename")
    for old in _in_order(folder)[KEEP:]:
        shutil.rmtree(old)
    return path


class CheckpointWriter:
    """Writes one checkpoint at a time, in a thread: hashing and flushing gigabytes must not hold up
    the device."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._writing: Future[Path] | None = None

    def begin(self, snapshot: Snapshot) -> None:
        """Only after `finished` has told of the one before."""
        assert self._writing is None
        self._writing = self._pool.submit(write_checkpoint, snapshot)

    @property
    def is_writing(self) -> bool:
        """Or has written one that `finished` has not told of."""
        return self._writing is not None

    def finished(self, *, wait: bool) -> Path | None:
        """The checkpoint that was written since the last call, once; None: there is none, or it is
        not whole yet. Raises what writing it raised."""
        if self._writing is None or not (wait or self._writing.done()):
            return None
        writing, self._writing = self._writing, None
        return writing.result()


def find_checkpoint(
    newest: Path, fingerprint: str, warn: Callable[[str], None]
) -> Checkpoint | None:
    """``newest`` if it is whole, else the one before it in the same folder, and so on.

    None when none is whole: the training then starts over, after a warning. Raises
    `CheckpointError` when it is whole but of another spec, dataset or model.
    """
    before = [path for path in _in_order(newest.parent) if path.name < newest.name]
    for path in [newest, *before]:
        try:
            return _load(path, fingerprint)
        except _DamagedError as error:
            warn(f"Checkpoint {path.name} is damaged ({error}); trying the one before.")
    warn("No checkpoint is whole; starting at step 0.")
    return None


def restore_optimizer(
    optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]
) -> None:
    """Give ``optimizer`` the moments of a checkpoint; its settings stay its own."""
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _load(path: Path, fingerprint: str) -> Checkpoint:
    _verify(path)
    try:
        state = _State.model_validate_json((path / STATE_FILE).read_bytes())
    except ValidationError as error:
        raise _DamagedError("state.json is of another version") from error
    if state.fingerprint != fingerprint:
        raise CheckpointError(
            f"The checkpoint of step {state.step} belongs to another training (other settings, "
            "dataset or model). Resume with the ones it was made with, or start at step 0."
        )
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, tensor in load_file(path / OPTIMIZER_FILE).items():
        number, _, name = key.partition(".")
        optimizer.setdefault(int(number), {})[name] = tensor
    return Checkpoint(path, state.step, load_file(path / ADAPTER_FILE), optimizer)


def _verify(path: Path) -> None:
    try:
        manifest = json.loads((path / CHECKPOINT_MANIFEST).read_bytes())
        listed: dict[str, Any] = manifest["files"]
        if missing := {ADAPTER_FILE, OPTIMIZER_FILE, STATE_FILE} - listed.keys():
            raise _DamagedError(f"{min(missing)} is not listed")
        for name, facts in listed.items():
            if _facts(path / name) != facts:
                raise _DamagedError(f"{name} differs from its checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"{type(error).__name__} while checking it") from error


def _facts(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {"bytes": file.stat().st_size, "sha256": digest}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": tensor
        for number, tensors in state.items()
        for name, tensor in tensors.items()
    }


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}


def step_of(path: Path) -> int:
    """Of a checkpoint directory, by its name."""
    return int(path.name.removeprefix(_PREFIX))


def _in_order(folder: Path) -> list[Path]:
    """The folder's checkpoints, newest first."""
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
