"""The memory policy at work: on a device that runs short, whatever is missing to it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor

from tests.trainer.jobs import make_spec
from tests.trainer.test_loop import make_example
from trainer import loop
from trainer.adapter import adapter_state
from trainer.attention import attention_kernel, fastest_kernel
from trainer.errors import CapacityError
from trainer.execution import execution_of, wants_compiling
from trainer.loop import Trainer
from trainer.model import BaseModel
from trainer.plan import MachineSettings, Plan, Workload
from trainer.policy import apply_plan, fewer_recomputed, first_plan
from trainer.quantised import quantised_to

CPU = torch.device("cpu")
WORK = Workload(num_tokens=8, rank=8, with_audio=False)


def all_recomputed(transformer: LTX2VideoTransformer3DModel) -> bool:
    return execution_of(transformer).num_recomputed == 4


def is_quantised(transformer: LTX2VideoTransformer3DModel) -> bool:
    return quantised_to(transformer) != "full"


def is_offloaded(transformer: LTX2VideoTransformer3DModel) -> bool:
    return execution_of(transformer).weights is not None


def short_device(
    transformer: LTX2VideoTransformer3DModel, fits: Callable[[LTX2VideoTransformer3DModel], bool]
) -> None:
    """A step runs out of memory unless the transformer is as ``fits`` says."""

    def check(*_: object) -> None:
        if not fits(transformer):
            raise torch.OutOfMemoryError("Tried to allocate 1 PiB")

    transformer.transformer_blocks[2].ff.register_forward_pre_hook(check)


@pytest.mark.parametrize(
    ("fits", "plan"),
    [
        (lambda _: True, ("full", 0, 0)),
        (all_recomputed, ("full", 4, 0)),
        (is_quantised, ("int8", 4, 0)),
        (is_offloaded, ("int8", 4, 1)),
    ],
    ids=["fits", "recomputed", "quantised", "offloaded"],
)
def test_before_a_training_everything_is_tried(
    tiny: BaseModel, fits: Any, plan: tuple[str, int, int]
) -> None:
    transformer = tiny.transformer(with_audio=False)
    short_device(transformer, fits)
    trainer = Trainer(transformer, make_spec(), with_audio=False)
    trainer.try_step(make_example())
    used = trainer.plan
    assert (used.precision, used.num_recomputed, used.num_offloaded) == plan
    assert all(parameter.grad is None for parameter in trainer.parameters)
    assert torch.isfinite(trainer.update(make_example())[0])


def test_during_a_training_the_numbers_stay(tiny: BaseModel) -> None:
    """Recomputed and offloaded are the same to the last bit; quantised would not be."""
    results: list[dict[str, Tensor]] = []
    for fits in (lambda _: True, is_offloaded):
        transformer = tiny.transformer(with_audio=False)
        trainer = Trainer(transformer, make_spec(), with_audio=False)
        trainer.update(make_example())
        short_device(transformer, fits)
        trainer.update(make_example())
        assert quantised_to(transformer) == "full"
        results.append({key: t.clone() for key, t in adapter_state(transformer).items()})
    for key, tensor in results[0].items():
        torch.testing.assert_close(results[1][key], tensor, atol=1e-5, rtol=0)


def test_settings_are_not_overruled(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False)
    short_device(transformer, is_quantised)
    machine = MachineSettings(precision="full", offloaded_blocks=0)
    trainer = Trainer(transformer, make_spec(), with_audio=False, machine=machine)
    with pytest.raises(CapacityError, match="Use fewer frames"):
        trainer.try_step(make_example())


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        (MachineSettings(), ("full", 0, 0)),
        (MachineSettings(precision="fp8"), ("fp8", 0, 0)),
        (MachineSettings(recomputed_blocks=99), ("full", 4, 0)),
        (MachineSettings(offloaded_blocks=2), ("full", 4, 2)),
    ],
    ids=["nothing", "precision", "recomputed", "offloaded-and-so-recomputed"],
)
def test_the_plan_of_a_small_model(settings: MachineSettings, plan: tuple[str, int, int]) -> None:
    found = first_plan(WORK, CPU, settings, num_blocks=4)
    assert (found.precision, found.num_recomputed, found.num_offloaded) == plan


def test_a_plan_is_applied_to_what_is_loaded_and_back(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False)
    expected = transformer.state_dict()
    expected = {name: tensor.clone() for name, tensor in expected.items()}
    apply_plan(transformer, Plan("full", 4, 3), CPU)
    assert is_offloaded(transformer)
    apply_plan(transformer, Plan(), CPU)
    assert not is_offloaded(transformer)
    assert execution_of(transformer).num_recomputed == 0
    ours = transformer.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("free", "recomputed"), [(200, 0), (70, 18), (41, 47), (10, 48)], ids=lambda value: str(value)
)
def test_as_many_blocks_are_kept_as_two_measured_steps_say(free: int, recomputed: int) -> None:
    """40 bytes with everything recomputed, and one more for every block that is kept."""
    tried = []

    def peak(plan: Plan) -> int:
        tried.append(plan.num_recomputed)
        return 40 + 48 - plan.num_recomputed

    plan = fewer_recomputed(Plan("full", 48), peak, int(free / 0.96) + 1, num_blocks=48)
    assert plan.num_recomputed == recomputed
    assert tried == [48, 44]


def test_what_fits_already_is_not_measured() -> None:
    def never(plan: Plan) -> int:
        raise AssertionError(plan)

    assert fewer_recomputed(Plan(), never, 100, num_blocks=48) == Plan()


def prepared(tiny: BaseModel, *, compile: str) -> tuple[Trainer, list[str]]:
    machine = MachineSettings(compile=compile)  # type: ignore[arg-type]
    trainer = Trainer(
        tiny.transformer(with_audio=False), make_spec(), with_audio=False, machine=machine
    )
    said: list[str] = []
    trainer.prepare(make_example(keep=2), said.append)
    return trainer, said


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
def test_compiled_blocks_are_one_graph_with_the_same_gradients(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated by the compiler, but not turned into machine code: that takes a
    minute. Four blocks, kept and recomputed, share the graph."""
    monkeypatch.setattr(loop, "COMPILER", "aot_eager")
    torch.compiler.reset()
    trainer, _ = prepared(tiny, compile="on")
    assert execution_of(trainer.transformer).compiled is not None
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    updates = []
    for recomputed in (0, 2):
        apply_plan(trainer.transformer, Plan("full", recomputed), CPU)
        updates.append(trainer.update(make_example(keep=2), trainer.draws(make_example(keep=2), 0)))
        if recomputed == 0:
            plain, _ = prepared(tiny, compile="off")
            updates.append(plain.update(make_example(keep=2)))
    assert torch.allclose(updates[0][[0, 3]], updates[1][[0, 3]], atol=1e-5)
    torch.compiler.reset()


def test_a_machine_that_can_not_compile_trains_all_the_same(
    tiny: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(graph: object, inputs: object) -> None:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(loop, "COMPILER", no_compiler)
    torch.compiler.reset()
    trainer, said = prepared(tiny, compile="on")
    assert any("can't be compiled here" in line for line in said)
    assert torch.isfinite(trainer.update(make_example())[0])
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("compile", "device", "num_steps", "expected"),
    [
        ("auto", "cpu", 2000, False),
        ("auto", "cuda", 2000, True),
        ("auto", "cuda", 100, False),
        ("on", "cpu", 1, True),
        ("off", "cuda", 2000, False),
    ],
)
def test_when_to_compile(compile: str, device: str, num_steps: int, expected: bool) -> None:
    machine = MachineSettings(compile=compile)  # type: ignore[arg-type]
    assert wants_compiling(machine, torch.device(device), num_steps) is expected


def test_a_named_kernel_changes_no_number_and_stands_back_where_it_can_not(
    tiny: BaseModel,
) -> None:
    losses = []
    for kernel in ("auto", "cudnn", "math"):
        machine = MachineSettings(attention=kernel)  # type: ignore[arg-type]
        trainer = Trainer(
            tiny.transformer(with_audio=False), make_spec(), with_audio=False, machine=machine
        )
        trainer.prepare(make_example(), lambda line: None)
        losses.append(trainer.update(make_example())[0])
    assert torch.allclose(losses[0], torch.stack(losses), atol=1e-5)
    assert fastest_kernel(CPU, 8, 4, 16) == (None, {})
    with attention_kernel(None):
        pass
