"""Storing what a training made: patience with the store, checkpoints, previews."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from app.storage import StoredObject, make_storage
from app.storage.errors import StorageRefused, StorageUnavailable
from trainer.job import CHECKPOINT_MANIFEST
from workers import files
from workers.checkpoints import CheckpointStore, Uploader
from workers.runtime import Runtime


class Flaky:
    """A store that fails the given number of times before it does what it should."""

    def __init__(self, store: Any, failures: int, error: type[Exception]) -> None:
        self.store = store
        self.left = failures
        self.error = error
        self.tries = 0

    def put_file(self, *args: Any, **kwargs: Any) -> StoredObject:
        self.tries += 1
        if self.left:
            self.left -= 1
            raise self.error("away")
        stored: StoredObject = self.store.put_file(*args, **kwargs)
        return stored


def put(store: Any, path: Path, check: Any = lambda: None) -> tuple[StoredObject, list[str]]:
    said: list[str] = []
    stored = files.put_patiently(
        store, "requests/r/lora", path, content_type="text/plain", check=check, say=said.append
    )
    return stored, said


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.01)


def test_a_store_that_comes_back_gets_the_file(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "lora").write_text("weights")
    flaky = Flaky(make_storage(runtime.settings), 3, StorageUnavailable)
    stored, said = put(flaky, tmp_path / "lora")
    assert (stored.size_bytes, flaky.tries, len(said)) == (7, 4, 3)
    assert "lora is kept and tried again" in said[0]


def test_a_store_that_refuses_is_not_asked_again(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "lora").write_text("weights")
    flaky = Flaky(make_storage(runtime.settings), 9, StorageRefused)
    with pytest.raises(StorageRefused):
        put(flaky, tmp_path / "lora")
    assert flaky.tries == 1


def test_waiting_ends_when_the_attempt_should(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "lora").write_text("weights")
    flaky = Flaky(make_storage(runtime.settings), 10**9, StorageUnavailable)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        put(flaky, tmp_path / "lora", check)


def checkpoint(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:06d}"
    path.mkdir(parents=True)
    (path / "adapter.safetensors").write_text(f"weights of {step}")
    (path / CHECKPOINT_MANIFEST).write_text("{}")
    return path


@pytest.fixture
def checkpoints(runtime: Runtime) -> CheckpointStore:
    return CheckpointStore(make_storage(runtime.settings), "requests/r/checkpoints")


def test_the_newest_whole_checkpoint_is_fetched(
    runtime: Runtime, checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    assert checkpoints.fetch_newest(tmp_path / "none") is None
    for step, attempt in ((10, 1), (20, 1), (30, 2)):
        checkpoints.put(checkpoint(tmp_path, step), step, attempt)
    assert [found.step for found in checkpoints.stored()] == [30, 20]
    runtime.storage.delete(f"requests/r/checkpoints/000030-2/{CHECKPOINT_MANIFEST}")
    back = checkpoints.fetch_newest(tmp_path / "back")
    assert back is not None
    assert (back / "adapter.safetensors").read_text() == "weights of 20"
    checkpoints.delete_all()
    assert checkpoints.stored() == []


def test_a_damaged_checkpoint_is_passed_over(
    runtime: Runtime, checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    for step in (10, 20):
        checkpoints.put(checkpoint(tmp_path, step), step, 1)
    root = runtime.settings.data_dir
    (damaged,) = root.rglob("objects/requests/r/checkpoints/000020-1/adapter.safetensors")
    damaged.unlink()
    damaged.write_text("something else")
    back = checkpoints.fetch_newest(tmp_path / "back")
    assert back is not None
    assert back.name == "step-000010"


def test_uploads_survive_a_failure_and_end_before_the_folder_goes(
    checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    uploader = Uploader(checkpoints, attempt=1, lost=lambda: False, held=tmp_path / "held")
    done = []

    def fails() -> None:
        raise OSError("the file is gone")

    uploader.put(fails)
    uploader.put(lambda: done.append(1))
    uploader.put_checkpoint(10, checkpoint(tmp_path, 10))
    uploader.close()
    assert done == [1]
    assert [found.step for found in checkpoints.stored()] == [10]


def test_the_trainer_may_save_faster_than_the_store_takes(
    checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    """While two wait to be sent, the trainer removes its files, and the older is superseded."""
    held = tmp_path / "held"
    uploader = Uploader(checkpoints, attempt=1, lost=lambda: False, held=held)
    may_send, sending = threading.Event(), threading.Event()

    def slow() -> None:
        sending.set()
        assert may_send.wait(60)

    folders = {step: checkpoint(tmp_path, step) for step in (10, 20, 30)}
    uploader.put(slow)
    assert sending.wait(60)
    for step in (10, 20, 20):
        uploader.put_checkpoint(step, folders[step])
    assert len(list(held.iterdir())) == 1, "only the newest waits"
    for folder in folders.values():
        shutil.rmtree(folder)
    uploader.put_checkpoint(30, folders[30])  # told of too late: nothing is left to send
    may_send.set()
    uploader.close()
    assert [found.step for found in checkpoints.stored()] == [20]
    assert list(held.iterdir()) == []


def test_who_lost_the_lease_stores_nothing_more(
    checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    lost = threading.Event()
    uploader = Uploader(checkpoints, attempt=1, lost=lost.is_set, held=tmp_path / "held")
    uploader.put(lost.set)  # while an earlier one is under way
    uploader.put_checkpoint(10, checkpoint(tmp_path, 10))
    uploader.close()
    assert checkpoints.stored() == []
