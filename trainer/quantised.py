"""Frozen linear layers with weights of one byte: FP8 for speed and room, int8 for room.

Only the base model's matrices are quantised, and only in the transformer's blocks; the adapters on
top stay fp32. The first and the last two blocks keep full precision, as in the official FP8 file
(`ltx-training.md` 2.6, 5.4).

`Float8Linear` multiplies in FP8, forward and for the gradient of its input: e4m3 weights with one
scale per output row, and activations and gradients quantised on the spot with one scale per token.
For the input's gradient the weight's scale lies inside the sum, so it is put into the incoming
gradient before that is quantised. On CUDA both are `torch._scaled_mm`; elsewhere the same quantised
numbers are multiplied in the input's precision.

`Int8Linear` spreads its weight out to the input's precision for every product.
"""

from typing import Any, Final, Literal

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainer.adapter import ADAPTER
from trainer.capacity import FULL_PRECISION_BLOCKS

Precision = Literal["full", "fp8", "int8"]
"""Of the frozen base; ``full`` is bf16 on CUDA and fp32 on the CPU."""


_NOT_QUANTISED: Final = ("to_gate_logits", "lora_A." + ADAPTER, "lora_B." + ADAPTER)
"""A few rows, and the adapters."""

_E4M3: Final = torch.float8_e4m3fn
_E4M3_MAX: Final = 448.0
_INT8_MAX: Final = 127.0
_LEAST_SCALE: Final = 1e-12
"""For a row of zeros."""


class QuantisedLinear(nn.Linear):
    """A frozen linear layer; ``weight`` [out, in] of one byte, ``scale`` [out, 1] in fp32.

    Bytes of FP8 are kept as integers, so that nobody takes them for the precision of an adapter.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear, weight: Tensor, scale: Tensor) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        if linear.bias is not None:
            self.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weight={self.weight.dtype}"


class Float8Linear(QuantisedLinear):
    """See the top of this file."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "Float8Linear":
        weight, scale = to_float8(linear.weight.detach())
        return cls(linear, weight.view(torch.uint8), scale)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = _Float8Product.apply(
            _in_compute_dtype(input), self.weight, self.scale, self.bias
        )
        return result


class Int8Linear(QuantisedLinear):
    """See the top of this file."""

    @classmethod
    def of(cls, linear: nn.Linear) -> "Int8Linear":
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=_LEAST_SCALE) / _INT8_MAX
        return cls(linear, (weight / scale).round().to(torch.int8), scale)

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = _Int8Product.apply(
            _in_compute_dtype(input), self.weight, self.scale, self.bias
        )
        return result


_KINDS: Final = {"fp8": Float8Linear.of, "int8": Int8Linear.of}


def linears_to_quantise(transformer: LTX2VideoTransformer3DModel) -> set[str]:
    """Names of the layers that a quantised base has in one byte: all attention and feed-forward
    matrices of the blocks but the outermost ones; not the gates, which are a few rows."""
    num_blocks = len(transformer.transformer_blocks)
    outer = min(FULL_PRECISION_BLOCKS, num_blocks // 4)  # one of tiny's four at each end
    inner = range(outer, num_blocks - outer)
    return {
        f"transformer_blocks.{index}.{name}"
        for index in inner
        for name, module in transformer.transformer_blocks[index].named_modules()
        if isinstance(module, nn.Linear) and not name.endswith(_NOT_QUANTISED)
    }


def quantise_linear(model: nn.Module, name: str, precision: Precision) -> None:
    """Replace one linear layer by its quantised form. Its weight must be there, not on meta."""
    parent, _, child = name.rpartition(".")
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    setattr(model.get_submodule(parent), child, _KINDS[precision](linear))


def quantise(transformer: LTX2VideoTransformer3DModel, precision: Precision) -> None:
    """Quantise a loaded transformer in place, layer by layer, adapters or not. It can't be undone:
    load it again."""
    if precision != "full":
        for name in sorted(linears_to_quantise(transformer)):
            quantise_linear(transformer, name, precision)


def quantised_to(transformer: LTX2VideoTransformer3DModel) -> Precision:
    """The precision of the base, as it is."""
    for module in transformer.modules():
        if isinstance(module, Float8Linear):
            return "fp8"
        if isinstance(module, Int8Linear):
            return "int8"
    return "full"


def supports_float8(device: torch.device) -> bool:
    """Whether FP8 products are computed in FP8: from Ada on (compute capability 8.9)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def to_float8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[R, K] -> e4m3 [R, K] and a scale per row [R, 1], float32: rows = quantised * scale."""
    scale = rows.abs().amax(1, keepdim=True).float().clamp(min=_LEAST_SCALE) / _E4M3_MAX
    return (rows / scale).clamp(-_E4M3_MAX, _E4M3_MAX).to(_E4M3), scale


def _in_compute_dtype(input: Tensor) -> Tensor:
    """As autocast would cast the input of a linear layer."""
    if torch.is_autocast_enabled(input.device.type):
        return input.to(torch.get_autocast_dtype(input.device.type))
    return input


def _product(
    rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], bias: Tensor | None, dtype: Any
) -> Tensor:
    """Quantised [R, K] with scales [R, 1] times quantised [C, K] with scales [C, 1] -> [R, C]."""
    (a, scale_a), (b, scale_b) = rows, columns
    if a.device.type == "cuda":
        return torch._scaled_mm(
            a,
            b.t(),
            scale_a=scale_a,
            scale_b=scale_b.t(),
            bias=None if bias is None else bias.to(torch.bfloat16),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        ).to(dtype)
    product = (a.to(dtype) @ b.t().to(dtype)) * (scale_a * scale_b.t()).to(dtype)
    return product if bias is None else product + bias.to(dtype)


class _Float8Product(torch.autograd.Function):
    """input [..., in], weight [out, in], scale [out, 1] -> [..., out]."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        rows = to_float8(input.reshape(-1, input.shape[-1]))
        product = _product(rows, (weight.view(_E4M3), scale), bias, input.dtype)
        return product.view(*input.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1]) * scale.t().to(gradient.dtype)
        ones = torch.ones(weight.shape[1], 1, device=weight.device)
        # FP8 kernels want both factors along the sum: the weight is turned, a byte an element.
        turned = weight.t().contiguous().view(_E4M3)
        product = _product(to_float8(rows), (turned, ones), None, gradient.dtype)
        return product.view(*gradient.shape[:-1], weight.shape[1]), None, None, None


class _Int8Product(torch.autograd.Function):
    """As `_Float8Product`, multiplied in the input's precision."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        full = weight.to(input.dtype) * scale.to(input.dtype)
        return nn.functional.linear(input, full, None if bias is None else bias.to(input.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, scale = ctx.saved_tensors
        return gradient @ (weight.to(gradient.dtype) * scale.to(gradient.dtype)), None, None, None
