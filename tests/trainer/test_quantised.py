"""A base in one byte: its numbers, its gradients, and what the rest of the trainer sees of it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.trainer.test_transformer import inputs
from trainer.adapter import adapter_state, add_adapter, remove_adapter
from trainer.check import check_artifact
from trainer.execution import checkpoint_blocks
from trainer.lora_file import LoraMetadata, save_lora
from trainer.model import BaseModel
from trainer.quantised import (
    Float8Linear,
    Int8Linear,
    QuantisedLinear,
    _product,
    linears_to_quantise,
    quantise,
    quantised_to,
    to_float8,
)
from trainer.transformer import predict_velocity

KINDS = {"fp8": (Float8Linear, 0.05), "int8": (Int8Linear, 0.01)}
"""The layer, and the largest error of a product of random numbers, relative in L2."""


def random_linear(seed: int = 0) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(96, 64).requires_grad_(False)


def relative(ours: Tensor, exact: Tensor) -> float:
    return ((ours - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch", [(7,), (2, 5)], ids=["rows", "batch of rows"])
def test_products_and_gradients_are_near_the_exact_ones(name: str, batch: tuple[int, ...]) -> None:
    kind, tolerance = KINDS[name]
    linear = random_linear()
    layer = kind.of(linear)
    exact, ours = (torch.randn(*batch, 96, requires_grad=True) for _ in "ab")
    ours.data.copy_(exact.data)
    upstream = torch.randn(*batch, 64)
    for module, tokens in ((linear, exact), (layer, ours)):
        module(tokens).backward(upstream)
    assert layer.weight.element_size() == 1
    assert 0 < relative(layer(ours), linear(exact)) < tolerance
    assert exact.grad is not None
    assert ours.grad is not None
    assert 0 < relative(ours.grad, exact.grad) < tolerance


def test_fp8_is_the_product_of_the_quantised_numbers() -> None:
    """Forward and for the input's gradient: what `torch._scaled_mm` computes on a GPU."""
    linear = random_linear()
    layer = Float8Linear.of(linear)
    tokens = torch.randn(5, 96, requires_grad=True)
    upstream = torch.randn(5, 64)
    layer(tokens).backward(upstream)
    (x, x_scale), (w, w_scale) = to_float8(tokens.detach()), to_float8(linear.weight)
    expected = (x.double() * x_scale) @ (w.double() * w_scale).t() + linear.bias
    torch.testing.assert_close(layer(tokens).double(), expected, atol=1e-5, rtol=1e-5)
    (g, g_scale) = to_float8(upstream * w_scale.t())
    assert tokens.grad is not None
    torch.testing.assert_close(
        tokens.grad.double(), (g.double() * g_scale) @ w.double(), atol=1e-5, rtol=1e-5
    )


def test_zeros_stay_zeros() -> None:
    rows, scale = to_float8(torch.zeros(2, 8))
    assert not rows.float().any()
    assert torch.isfinite(scale).all()


def test_a_layer_under_autocast_answers_in_its_precision() -> None:
    layer = Float8Linear.of(random_linear())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 96)).dtype == torch.bfloat16


def test_the_ends_and_the_gates_stay_as_they_are(tiny: BaseModel) -> None:
    names = linears_to_quantise(tiny.transformer(with_audio=True))
    assert {name.split(".")[1] for name in names} == {"1", "2"}  # of four blocks
    assert "transformer_blocks.1.audio_to_video_attn.to_out.0" in names
    assert "transformer_blocks.2.ff.net.0.proj" in names
    assert not [name for name in names if "gate_logits" in name]


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_loaded_quantised_is_quantised_after_loading(tiny: BaseModel, precision: str) -> None:
    loaded = tiny.transformer(with_audio=False, precision=precision)
    later = tiny.transformer(with_audio=False)
    assert quantised_to(later) == "full"
    quantise(later, precision)
    assert quantised_to(loaded) == quantised_to(later) == precision
    ours, others = loaded.state_dict(), later.state_dict()
    assert ours.keys() == others.keys()
    assert all(torch.equal(ours[name], others[name]) for name in ours)
    assert not [name for name, p in loaded.named_parameters() if p.requires_grad]


def test_an_adapter_on_a_quantised_base_is_fp32_and_comes_off(tiny: BaseModel) -> None:
    transformer = tiny.transformer(with_audio=False, precision="fp8")
    video, _ = inputs()
    before, _ = predict_velocity(transformer, video, None)
    parameters = add_adapter(transformer, 4, with_audio=False)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    checkpoint_blocks(transformer, 2)
    velocity, _ = predict_velocity(transformer, video, None)
    assert torch.equal(velocity, before)
    velocity.square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)
    remove_adapter(transformer)
    kinds = {type(module) for _, module in transformer.named_modules()}
    assert Float8Linear in kinds
    assert not any(issubclass(kind, QuantisedLinear) and kind is not Float8Linear for kind in kinds)


@pytest.mark.parametrize("num_offloaded", [0, 4], ids=["there", "offloaded"])
def test_a_lora_of_a_quantised_base_passes_its_check(
    tiny: BaseModel, tmp_path: Path, num_offloaded: int
) -> None:
    """diffusers' own loader puts the file onto the same quantised base, to the last bit."""

    def fresh() -> nn.Module:
        return tiny.transformer(with_audio=False, precision="fp8", num_offloaded=num_offloaded)

    trained = fresh()
    for number, parameter in enumerate(add_adapter(trained, 4, with_audio=False)):
        generator = torch.Generator().manual_seed(number)
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    path = tmp_path / "lora.safetensors"
    metadata = LoraMetadata(
        training_type="t2v",
        rank=4,
        steps=1,
        width=64,
        height=64,
        num_frames=9,
        frame_rate="24",
        with_audio=False,
    )
    save_lora(path, adapter_state(trained), metadata)
    check_artifact(path, trained, fresh)


@pytest.mark.parametrize(("rows", "inner", "columns"), [(6912, 4096, 16384), (1024, 2048, 4096)])
def test_the_product_keeps_the_rules_of_cudas_kernel(rows: int, inner: int, columns: int) -> None:
    """Shapes, strides and dtypes, as PyTorch checks them for a tensor without bytes on a GPU."""

    def operand(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        bytes_of = torch.empty(count, inner, dtype=torch.float8_e4m3fn, device="cuda")
        return bytes_of, torch.empty(count, 1, device="cuda")

    with FakeTensorMode(), torch.no_grad():
        bias = torch.empty(columns, dtype=torch.bfloat16, device="cuda")
        product = _product(operand(rows), operand(columns), bias, torch.float32)
        assert (product.shape, product.dtype) == ((rows, columns), torch.float32)
        turned = torch.empty(inner, columns, dtype=torch.float8_e4m3fn, device="cuda").t()
        with pytest.raises(RuntimeError):
            _product(operand(rows), (turned, operand(columns)[1]), None, torch.float32)
