"""Weights that come in turn: the same numbers, and never more than two blocks of them here."""

import pytest
import torch

from tests.trainer.test_transformer import inputs
from trainer.adapter import add_adapter
from trainer.execution import checkpoint_blocks, execution_of
from trainer.model import BaseModel
from trainer.offload import OffloadedWeights, offload_blocks
from trainer.transformer import predict_velocity

CPU = torch.device("cpu")


def two_steps(
    tiny: BaseModel, num_offloaded: int, precision: str, joint: bool
) -> list[torch.Tensor]:
    transformer = tiny.transformer(
        with_audio=joint, precision=precision, num_offloaded=num_offloaded
    )
    parameters = add_adapter(transformer, 4, with_audio=joint)
    for number, parameter in enumerate(parameters):
        generator = torch.Generator().manual_seed(number)
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    checkpoint_blocks(transformer, 4)
    video, audio = inputs(keep=3)
    for _ in range(2):
        with torch.no_grad():  # a preview between two steps
            predict_velocity(transformer, video, audio if joint else None)
        velocities = predict_velocity(transformer, video, audio if joint else None)
        sum(one.square().mean() for one in velocities if one is not None).backward()
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize(
    ("num_offloaded", "precision", "joint"),
    [(1, "full", False), (3, "full", True), (4, "full", False), (4, "fp8", False)],
    ids=["one", "three-joint", "all", "all-fp8"],
)
def test_offloaded_blocks_have_the_same_gradients(
    tiny: BaseModel, num_offloaded: int, precision: str, joint: bool
) -> None:
    expected = two_steps(tiny, 0, precision, joint)
    ours = two_steps(tiny, num_offloaded, precision, joint)
    assert len(ours) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(ours, expected, strict=True))


def test_two_blocks_are_here_at_a_time_and_the_next_is_on_its_way(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = tiny.transformer(with_audio=False, num_offloaded=4)
    weights = execution_of(transformer).weights
    assert isinstance(weights, OffloadedWeights)
    seen = []
    bring = weights.bring

    def watched(index: int) -> None:
        bring(index)
        seen.append((index, weights.blocks_here))

    monkeypatch.setattr(weights, "bring", watched)
    add_adapter(transformer, 4, with_audio=False)
    checkpoint_blocks(transformer, 4)
    predict_velocity(transformer, inputs()[0], None)[0].square().mean().backward()
    assert seen == [
        (0, {0, 1}),
        (1, {1, 2}),
        (2, {2, 3}),
        (3, {2, 3}),
        (3, {2, 3}),
        (2, {1, 2}),
        (1, {0, 1}),
        (0, {0, 1}),
    ]


def test_brought_back_for_good(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False, num_offloaded=3)
    predict_velocity(transformer, inputs()[0], None)
    offload_blocks(transformer, 0, CPU)
    expected = tiny.transformer(with_audio=False).state_dict()
    assert execution_of(transformer).weights is None
    assert all(torch.equal(transformer.state_dict()[name], t) for name, t in expected.items())
