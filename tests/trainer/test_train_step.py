"""One whole update against the reference: golden 06, loss to weights; and the adapter itself."""

import pytest
import torch

from tests.trainer.jobs import golden, golden_extra, make_spec
from tests.trainer.test_transformer import golden_transformer
from trainer.adapter import (
    adapter_state,
    add_adapter,
    load_adapter_state,
    remove_adapter,
    target_modules,
)
from trainer.flow import Clean, Draws, Example, masked_loss, velocity_loss
from trainer.latents import pack_audio, pack_video
from trainer.loop import learning_rate
from trainer.model import BaseModel

STEPS = golden("06_train_step")
INPUTS = golden("05_transformer")
RUNS = golden_extra("06_train_step")["runs"]
TOLERANCE = 2e-4


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


def state_of(run: str, kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{run}.{kind}."
    return {k.removeprefix(prefix): v for k, v in STEPS.items() if k.startswith(prefix)}


@pytest.mark.golden
@pytest.mark.parametrize("run", RUNS)
def test_an_update_is_the_reference_update(run: str) -> None:
    settings = RUNS[run]
    with_audio = f"{run}.a.sigma" in STEPS
    assert sorted(target_modules(with_audio)) == sorted(settings["target_modules"])
    transformer = golden_transformer()
    parameters = add_adapter(transformer, settings["rank"], with_audio)
    assert len(parameters) == settings["n_lora_tensors"]
    load_adapter_state(transformer, state_of(run, "lora0"))

    video, video_draw = side_of(run, "v", "video")
    audio, audio_draw = side_of(run, "a", "audio") if with_audio else (None, None)
    losses = velocity_loss(transformer, Example(video, audio), Draws(video_draw, audio_draw))
    expected_loss = STEPS[f"{run}.loss"].mean()
    torch.testing.assert_close(losses.total.detach(), expected_loss, atol=TOLERANCE, rtol=0)

    losses.total.backward()
    layers = dict(zip(adapter_state(transformer), parameters, strict=True))
    expected = state_of(run, "grad")
    assert layers.keys() == expected.keys()
    for key, parameter in layers.items():
        torch.testing.assert_close(parameter.grad, expected[key], atol=1e-6, rtol=1e-4)

    norm = torch.nn.utils.clip_grad_norm_(parameters, settings["clip"])
    torch.testing.assert_close(
        norm, STEPS[f"{run}.grad_norm_before_clip"], atol=TOLERANCE, rtol=1e-4
    )
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings["lr"],
        betas=settings["betas"],
        eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )
    optimizer.step()
    for key, tensor in state_of(run, "lora1").items():
        torch.testing.assert_close(layers[key].detach(), tensor, atol=1e-6, rtol=0)


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
