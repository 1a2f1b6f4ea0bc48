"""One whole update against the reference: golden 06, loss to weights; and the adapter itself."""

import pytest
import torch

from tests.trainer.jobs import golden, golden_extra, make_spec
from tests.trainer.test_loop import make_example
from tests.trainer.test_transformer import golden_transformer
from trainer.adapter import (
    adapter_state,
    add_adapter,
    load_adapter_state,
    remove_adapter,
    target_modules,
)
from trainer.flow import Clean, Draws, Example, masked_loss
from trainer.latents import pack_audio, pack_video
from trainer.loop import Trainer, learning_rate
from trainer.model import BaseModel

STEPS = golden("06_train_step")
INPUTS = golden("05_transformer")
RUNS = golden_extra("06_train_step")["runs"]
TOLERANCE = 2e-4
WEIGHT_TOLERANCE = 3e-7
"""Half of what weight decay does to the largest weight in one update."""


def side_of(run: str, side: str, name: str) -> tuple[Clean, tuple[torch.Tensor, torch.Tensor]]:
    """One modality of a run, with the noise that made its target."""
    pack = {"v": pack_video, "a": pack_audio}[side]
    tokens = pack(STEPS[f"{run}.{side}.latents"])
    in_loss = STEPS[f"{run}.{side}.loss_mask"].bool()
    clean = Clean(
        tokens=tokens,
        context=INPUTS[f"in.{name}_context"],
        coords=INPUTS[f"in.{name}_positions"],
        keep=None if in_loss.all() else ~in_loss,
    )
    noise = STEPS[f"{run}.{side}.target"] + tokens
    return clean, (STEPS[f"{run}.{side}.sigma"], noise)


def watch(trainer: Trainer) -> list[list[torch.Tensor]]:
    """Fills with the gradients, in the parameters' order, that each update gives to AdamW."""
    seen: list[list[torch.Tensor]] = []

    def remember(*_: object) -> None:
        seen.append([parameter.grad.clone() for parameter in trainer.parameters])

    trainer.optimizer.register_step_pre_hook(remember)
    return seen


def state_of(run: str, kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{run}.{kind}."
    return {k.removeprefix(prefix): v for k, v in STEPS.items() if k.startswith(prefix)}


@pytest.mark.golden
@pytest.mark.parametrize("run", RUNS)
def test_an_update_is_the_reference_update(run: str) -> None:
    settings = RUNS[run]
    with_audio = f"{run}.a.sigma" in STEPS
    assert sorted(target_modules(with_audio)) == sorted(settings["target_modules"])
    spec = make_spec(
        rank=settings["rank"],
        learning_rate=settings["lr"],
        weight_decay=settings["weight_decay"],
        max_grad_norm=settings["clip"],
    )
    transformer = golden_transformer()
    trainer = Trainer(transformer, spec, with_audio=with_audio)
    assert len(trainer.parameters) == settings["n_lora_tensors"]
    load_adapter_state(transformer, state_of(run, "lora0"))
    updates = watch(trainer)

    video, video_draw = side_of(run, "v", "video")
    audio, audio_draw = side_of(run, "a", "audio") if with_audio else (None, None)
    loss, _, _, norm = trainer.update(Example(video, audio), Draws(video_draw, audio_draw))
    torch.testing.assert_close(loss, STEPS[f"{run}.loss"].mean(), atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(
        norm, STEPS[f"{run}.grad_norm_before_clip"], atol=TOLERANCE, rtol=1e-4
    )
    keys = adapter_state(transformer).keys()
    expected = state_of(run, "grad")
    assert keys == expected.keys()
    for key, gradient in zip(keys, updates[0], strict=True):
        torch.testing.assert_close(gradient, expected[key], atol=1e-6, rtol=1e-4)
    after = adapter_state(transformer)
    for key, tensor in state_of(run, "lora1").items():
        torch.testing.assert_close(after[key], tensor, atol=WEIGHT_TOLERANCE, rtol=0)


@pytest.mark.parametrize("with_audio", [False, True], ids=["video", "joint"])
def test_updates_are_clipped_decayed_and_follow_the_rate(tiny: BaseModel, with_audio: bool) -> None:
    """Every update against AdamW written out: decoupled decay, bias correction, clipped gradients,
    and a rate that falls to a tenth over 4 steps."""
    spec = make_spec(num_steps=4, learning_rate=1e-2, weight_decay=0.5, max_grad_norm=1e-3)
    trainer = Trainer(tiny.transformer(with_audio=with_audio), spec, with_audio=with_audio)
    gradients = watch(trainer)
    weights = [parameter.detach().clone() for parameter in trainer.parameters]
    means = [torch.zeros_like(weight) for weight in weights]
    squares = [torch.zeros_like(weight) for weight in weights]
    for number, rate in enumerate((1e-2, 7.75e-3, 5.5e-3, 3.25e-3), start=1):
        norm = trainer.update(make_example(with_audio=with_audio))[3]
        clipped = torch.cat([gradient.flatten() for gradient in gradients[-1]]).norm()
        assert norm > 2 * spec.max_grad_norm
        assert clipped.item() == pytest.approx(1e-3, rel=1e-3)
        for weight, mean, square, gradient, parameter in zip(
            weights, means, squares, gradients[-1], trainer.parameters, strict=True
        ):
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient**2)
            step = mean / (1 - 0.9**number)
            step /= (square / (1 - 0.999**number)).sqrt() + 1e-8
            weight.mul_(1 - rate * 0.5).sub_(rate * step)
            torch.testing.assert_close(parameter.detach(), weight, atol=2e-6, rtol=0)


def test_clipping_keeps_the_gradients_direction(tiny: BaseModel) -> None:
    found = []
    for max_grad_norm in (1e-3, 1e9):
        spec = make_spec(max_grad_norm=max_grad_norm)
        trainer = Trainer(tiny.transformer(with_audio=False), spec, with_audio=False)
        gradients = watch(trainer)
        norm = trainer.update(make_example())[3].item()
        found.append((norm, gradients[0]))
    (norm, clipped), (same_norm, whole) = found
    assert norm == same_norm > 2e-3
    for part, gradient in zip(clipped, whole, strict=True):
        torch.testing.assert_close(part, gradient * (1e-3 / norm), atol=1e-8, rtol=1e-3)


@pytest.mark.golden
@pytest.mark.parametrize("run", RUNS)
def test_the_losses_of_each_sample_are_the_reference_losses(run: str) -> None:
    total = torch.zeros(())
    for side in ("v", "a"):
        if f"{run}.{side}.pred" in STEPS:
            in_loss = STEPS[f"{run}.{side}.loss_mask"].bool()
            prediction, target = (STEPS[f"{run}.{side}.{name}"] for name in ("pred", "target"))
            total = total + masked_loss(prediction, target, in_loss)
    torch.testing.assert_close(total, STEPS[f"{run}.loss"], atol=1e-5, rtol=0)


@pytest.mark.golden
def test_the_learning_rate_falls_like_the_reference_rate() -> None:
    (name,) = [name for name in STEPS if name.startswith("linear_lr_")]
    num_steps = int(name.removeprefix("linear_lr_").partition("steps")[0])
    at = [int(part) for part in name.rpartition("at_")[2].split("_")]
    spec = make_spec(num_steps=num_steps, learning_rate=STEPS[name][at.index(0)].item())
    ours = [learning_rate(spec, step) for step in at]
    assert ours == pytest.approx(STEPS[name].tolist(), rel=1e-9)


@pytest.mark.parametrize("with_audio", [False, True], ids=["video", "joint"])
def test_an_adapter_starts_as_nothing_and_leaves_nothing(tiny: BaseModel, with_audio: bool) -> None:
    transformer = tiny.transformer(with_audio=with_audio)
    before = {key: tensor.clone() for key, tensor in transformer.state_dict().items()}
    parameters = add_adapter(transformer, 8, with_audio, seed=7)
    state = adapter_state(transformer)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert [p for p in transformer.parameters() if p.requires_grad] == parameters
    assert all(state[k].count_nonzero() == 0 for k in state if k.endswith("lora_B.weight"))
    assert all(state[k].count_nonzero() > 0 for k in state if k.endswith("lora_A.weight"))
    assert any("audio" in key for key in state) == with_audio
    with pytest.raises(RuntimeError, match="already"):
        add_adapter(transformer, 8, with_audio)

    first = {key: tensor.clone() for key, tensor in state.items()}
    remove_adapter(transformer)
    after = transformer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not adapter_state(transformer)
    torch.manual_seed(123)  # a fresh adapter depends on its own seed alone
    add_adapter(transformer, 8, with_audio, seed=7)
    assert all(torch.equal(t, first[k]) for k, t in adapter_state(transformer).items())


def test_adapters_stay_float32_on_a_bfloat16_base(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False).to(torch.bfloat16)
    assert {p.dtype for p in add_adapter(transformer, 4, False)} == {torch.float32}
    assert transformer.proj_in.weight.dtype == torch.bfloat16


def test_another_adapters_state_is_refused(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False)
    add_adapter(transformer, 8, False)
    state = {key: tensor.clone() for key, tensor in adapter_state(transformer).items()}
    key = next(iter(state))
    with pytest.raises(ValueError, match="keys"):
        load_adapter_state(transformer, {k: t for k, t in state.items() if k != key})
    with pytest.raises(ValueError, match=r"is \(1,"):
        load_adapter_state(transformer, state | {key: torch.zeros(1, 64)})
