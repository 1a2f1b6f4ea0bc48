"""Two processes that train one adapter: the update of a batch of both samples."""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from tests.trainer.jobs import make_job, make_spec
from trainer.cache import EncodedCache
from trainer.examples import Examples
from trainer.flow import draw
from trainer.footage import Dataset
from trainer.loop import Trainer, learning_rate
from trainer.model import BaseModel
from trainer.parallel import ALONE, Group
from trainer.timesteps import sample_index, step_generator
from workers.children import TrainerProcess

STEPS, PROCESSES = 3, 2


def test_alone_nothing_is_shared() -> None:
    losses = torch.ones(3)
    assert ALONE.mean(losses, []) is losses
    assert ALONE.tell("go on") == "go on"
    assert [ALONE.sample_number(step) for step in range(3)] == [0, 1, 2]


def test_samples_are_taken_in_turn() -> None:
    numbers = [Group(rank, 2).sample_number(step) for step in range(3) for rank in range(2)]
    assert numbers == list(range(6))


def test_two_processes_are_one_with_both_samples(
    tmp_path: Path, sounding_dataset: Path, cache: Path, tiny: BaseModel
) -> None:
    spec = make_spec(num_steps=STEPS)
    directory = make_job(tmp_path / "job", sounding_dataset, cache, spec=spec, checkpoint_every=99)
    trainers = TrainerProcess(tmp_path / "stderr", num_gpus=PROCESSES)
    try:
        trainers.submit(directory.root)
        deadline = time.monotonic() + 250
        while not trainers.answered():
            assert trainers.alive, trainers.stderr_tail()
            assert time.monotonic() < deadline, trainers.stderr_tail()
            time.sleep(0.1)
        assert trainers.process.stdin is not None
        trainers.process.stdin.close()  # no more jobs: all of them leave
        assert trainers.process.wait(60) == 0
    finally:
        trainers.kill()
    result = directory.result()
    assert result is not None
    assert result.status == "completed"
    saved = load_file(directory.checkpoints / f"step-{STEPS:06d}" / "adapter.safetensors")

    # The same on one process: gradients of both samples, averaged.
    trainer = Trainer(tiny.transformer(with_audio=True), spec, with_audio=True)
    examples = Examples(
        Dataset(sounding_dataset), EncodedCache(cache, tiny), spec, torch.device("cpu")
    )
    for step in range(STEPS):
        for number in range(step * PROCESSES, (step + 1) * PROCESSES):
            example = examples[sample_index(spec.seed, number, len(examples))]
            draws = draw(example, step_generator(spec.seed, number))
            trainer._forward_backward(example, draws)
        for parameter in trainer.parameters:
            assert parameter.grad is not None
            parameter.grad /= PROCESSES
        nn.utils.clip_grad_norm_(trainer.parameters, spec.max_grad_norm)
        trainer.optimizer.param_groups[0]["lr"] = learning_rate(spec, step)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
    for key, tensor in trainer.adapter().items():
        torch.testing.assert_close(saved[key], tensor, atol=1e-7, rtol=0)
    assert (directory.root / "processes/1.metrics.jsonl").is_file()
