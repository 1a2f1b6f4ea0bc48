"""Checkpoints: whole or not at all, the right training's, and never garbage (R17)."""

import random
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.checkpoint import (
    KEEP,
    CheckpointWriter,
    Snapshot,
    find_checkpoint,
    restore_optimizer,
    take_snapshot,
    write_checkpoint,
)
from trainer.errors import CheckpointError

NUM_DAMAGES = 100


def state_at(step: int) -> tuple[dict[str, Tensor], torch.optim.AdamW]:
    """An adapter and an optimizer that took ``step`` updates."""
    weights = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = torch.optim.AdamW([weights], lr=0.1)
    for number in range(step):
        weights.grad = torch.full_like(weights, 1.0 + number)
        optimizer.step()
    return {"block.lora_A.weight": weights.detach()}, optimizer


def save(folder: Path, step: int, fingerprint: str = "mine") -> Path:
    return write_checkpoint(snapshot(folder, step, fingerprint))


def snapshot(folder: Path, step: int, fingerprint: str = "mine") -> Snapshot:
    outputs = folder.parent / "outputs"
    (outputs / "previews").mkdir(parents=True, exist_ok=True)
    (outputs / "metrics.jsonl").write_text("".join(f"{{{n}}}\n" for n in range(step)))
    (outputs / "previews" / "step-000001_prompt-0.mp4").write_bytes(b"film" * step)
    adapter, optimizer = state_at(step)
    return take_snapshot(
        folder,
        step=step,
        fingerprint=fingerprint,
        adapter=adapter,
        optimizer=optimizer,
        metrics=outputs / "metrics.jsonl",
        previews=outputs / "previews",
    )


def is_state_at(
    step: int, adapter: dict[str, Tensor], optimizer: dict[int, dict[str, Tensor]]
) -> bool:
    expected, its_optimizer = state_at(step)
    moments = its_optimizer.state_dict()["state"]
    return (
        adapter.keys() == expected.keys()
        and all(torch.equal(adapter[key], expected[key]) for key in expected)
        and optimizer.keys() == moments.keys()
        and all(
            torch.equal(tensor, moments[number][name])
            for number, tensors in optimizer.items()
            for name, tensor in tensors.items()
        )
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def warnings() -> list[str]:
    return []


def test_everything_comes_back(folder: Path, warnings: list[str], tmp_path: Path) -> None:
    path = save(folder, 5)
    assert path.name == "step-000005"
    found = find_checkpoint(path, "mine", warnings.append)
    assert found.step == 5
    assert is_state_at(5, found.adapter, found.optimizer)
    metrics, previews = tmp_path / "new.jsonl", tmp_path / "new"
    found.restore_files(metrics, previews)
    assert metrics.read_text().count("\n") == 5
    assert (previews / "step-000001_prompt-0.mp4").read_bytes() == b"film" * 5
    assert warnings == []


def test_a_restored_optimizer_goes_on_as_if_never_stopped(folder: Path) -> None:
    found = find_checkpoint(save(folder, 5), "mine", print)
    weights = torch.nn.Parameter(found.adapter["block.lora_A.weight"])
    optimizer = torch.optim.AdamW([weights], lr=0.1)
    restore_optimizer(optimizer, found.optimizer)
    for number in range(5, 9):
        weights.grad = torch.full_like(weights, 1.0 + number)
        optimizer.step()
    assert torch.equal(weights.detach(), state_at(9)[0]["block.lora_A.weight"])


def test_what_happens_after_the_snapshot_is_not_in_it(
    folder: Path, warnings: list[str], tmp_path: Path
) -> None:
    """The training goes on while it is written."""
    outputs = tmp_path / "outputs"
    (outputs / "previews").mkdir(parents=True)
    adapter, optimizer = state_at(5)
    weights = optimizer.param_groups[0]["params"][0]
    (outputs / "metrics.jsonl").write_text("5 lines\n")
    taken = take_snapshot(
        folder,
        step=5,
        fingerprint="mine",
        adapter=adapter,
        optimizer=optimizer,
        metrics=outputs / "metrics.jsonl",
        previews=outputs / "previews",
    )
    weights.grad = torch.full_like(weights, 6.0)
    optimizer.step()
    (outputs / "metrics.jsonl").write_text("6 lines\n")
    (outputs / "previews" / "step-000006_prompt-0.mp4").write_bytes(b"film")
    found = find_checkpoint(write_checkpoint(taken), "mine", warnings.append)
    assert found is not None
    assert is_state_at(5, found.adapter, found.optimizer)
    found.restore_files(tmp_path / "metrics.jsonl", tmp_path / "previews")
    assert (tmp_path / "metrics.jsonl").read_text() == "5 lines\n"
    assert list((tmp_path / "previews").iterdir()) == []


def test_one_is_written_at_a_time_and_told_of_once(folder: Path) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        may_go = threading.Event()
        pool.submit(may_go.wait)
        writer = CheckpointWriter(pool)
        assert writer.finished(wait=True) is None
        writer.begin(snapshot(folder, 5))
        assert writer.finished(wait=False) is None
        assert writer.is_writing
        may_go.set()
        assert writer.finished(wait=True) == folder / "step-000005"
        assert not writer.is_writing
        assert writer.finished(wait=True) is None


def test_who_waits_for_a_checkpoint_hears_that_it_failed(folder: Path) -> None:
    with ThreadPoolExecutor(max_workers=1) as pool:
        writer = CheckpointWriter(pool)
        taken = snapshot(folder, 5)
        shutil.rmtree(taken.aside)
        writer.begin(taken)
        with pytest.raises(OSError, match="No such file"):
            writer.finished(wait=True)
        writer.begin(snapshot(folder, 6))
        assert writer.finished(wait=True) == folder / "step-000006"


def test_only_the_newest_stay(folder: Path) -> None:
    for step in (5, 10, 15, 1000):
        save(folder, step)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-000015", "step-001000"]
    assert len(names) == KEEP


def test_a_step_is_saved_again(folder: Path, warnings: list[str]) -> None:
    save(folder, 5, "another training's")
    found = find_checkpoint(save(folder, 5), "mine", warnings.append)
    assert found.step == 5


def test_a_checkpoint_of_another_training_is_refused(folder: Path, warnings: list[str]) -> None:
    save(folder, 5)
    with pytest.raises(CheckpointError, match="step 10 belongs to another training"):
        find_checkpoint(save(folder, 10, "other"), "mine", warnings.append)


def damage(path: Path, seed: int) -> str:
    """Damage a random file of the checkpoint; returns what was done."""
    generator = random.Random(seed)
    file = generator.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    content = bytearray(file.read_bytes())
    match generator.choice(["cut", "flip", "remove", "zeros", "append"]):
        case "cut":
            file.write_bytes(content[: generator.randrange(len(content))])
            return f"{file.name} cut"
        case "flip":
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(content)
            return f"{file.name} bit flipped"
        case "remove":
            file.unlink()
            return f"{file.name} removed"
        case "zeros":
            file.write_bytes(bytes(len(content)))
            return f"{file.name} zeroed"
        case _:
            file.write_bytes(content + b"x")
            return f"{file.name} longer"


@pytest.mark.parametrize("seed", range(NUM_DAMAGES))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    folder: Path, warnings: list[str], seed: int
) -> None:
    save(folder, 5)
    newest = save(folder, 10)
    done = damage(newest, seed)
    found = find_checkpoint(newest, "mine", warnings.append)
    # A flipped bit in the manifest's white space does no harm; then it is the newest, unchanged.
    assert found.step == 5 or "manifest.json bit flipped" in done
    assert is_state_at(found.step, found.adapter, found.optimizer), done
    assert len(warnings) == (found.step == 5)


def test_when_none_is_whole_the_training_starts_over(folder: Path, warnings: list[str]) -> None:
    for step in (5, 10):
        (save(folder, step) / "adapter.safetensors").write_bytes(b"garbage")
    assert find_checkpoint(folder / "step-000010", "mine", warnings.append) is None
    assert len(warnings) == 3
    assert "starting at step 0" in warnings[-1]


def test_what_was_never_finished_is_not_seen(folder: Path, warnings: list[str]) -> None:
    whole = save(folder, 5)
    whole.rename(folder / ".step-000010.part")
    assert find_checkpoint(folder / "step-000010", "mine", warnings.append) is None
    assert save(folder, 10).is_dir()
    assert not (folder / ".step-000010.part").exists()
