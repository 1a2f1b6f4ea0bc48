"""LoRA adapters on a frozen transformer: in, out, away (`ltx-training.md` 1.4, 1.8).

PEFT holds them. alpha equals rank, no dropout; the weights are fp32 whatever the base is, because
bf16 loses most updates at a learning rate of 2e-4. Keys are the module's name and
``lora_A.weight`` [rank, in] or ``lora_B.weight`` [out, rank], without a prefix.
"""

import math
from collections.abc import Mapping

import torch
from diffusers import LTX2VideoTransformer3DModel
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.spec import DEFAULT_SEED

ADAPTER = "default"
"""The adapter's name inside PEFT."""

_LINEARS = ("to_q", "to_k", "to_v", "to_out.0")
_VIDEO_ATTENTIONS = ("attn1", "attn2")


def target_modules(with_audio: bool) -> list[str]:
    """Module name endings: every attention of both branches (1152 linears of the real model), or
    video self- and text attention only (384). PEFT compares whole dotted parts, so ``attn1.to_q``
    does not match ``audio_attn1.to_q``."""
    if with_audio:
        return list(_LINEARS)
    return [f"{attention}.{linear}" for attention in _VIDEO_ATTENTIONS for linear in _LINEARS]


def add_adapter(
    transformer: LTX2VideoTransformer3DModel,
    rank: int,
    with_audio: bool,
    seed: int = DEFAULT_SEED,
) -> list[nn.Parameter]:
    """Freeze the base, put fresh adapters in, and return their parameters (fp32, in model order).
    They are on the device of the model's input, wherever a block's own weights are.

    A is Kaiming-uniform from ``seed`` alone, B zero: the model's output is unchanged.
    """
    if adapter_state(transformer):
        raise RuntimeError("the transformer already carries an adapter")
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=target_modules(with_audio))
    with torch.random.fork_rng(devices=[]):  # PEFT's own draw, overwritten below
        inject_adapter_in_model(config, transformer, adapter_name=ADAPTER)
    generator = torch.Generator().manual_seed(seed)
    device = transformer.proj_in.weight.device
    parameters: list[nn.Parameter] = []
    for _, layer in _layers(transformer):
        for linear in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
            linear.weight.data = linear.weight.data.to(device, torch.float32)
            parameters.append(linear.weight)
        down = torch.empty_like(layer.lora_A[ADAPTER].weight, device="cpu")
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            layer.lora_A[ADAPTER].weight.copy_(down)
            layer.lora_B[ADAPTER].weight.zero_()
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def add_frozen_adapter(
    transformer: LTX2VideoTransformer3DModel, pairs: Mapping[str, tuple[Tensor, Tensor]]
) -> None:
    """Put finished adapters in, unmerged and not to be trained.

    ``pairs`` is A [rank, in] and B [out, rank] for each linear by name; ranks may differ, and all
    scales are in them. Does nothing where there are none.
    """
    if adapter_state(transformer):
        raise RuntimeError("the transformer already carries an adapter")
    if not pairs:
        return
    # Rank 1 and alpha 1: no scale of PEFT's, and its own weights, thrown away here, are small.
    config = LoraConfig(
        r=1, lora_alpha=1, target_modules=list(pairs), init_lora_weights=False, inference_mode=True
    )
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config, transformer, adapter_name=ADAPTER)
    for name, layer in _layers(transformer):
        device = transformer.proj_in.weight.device  # wherever the block's own weights are
        for linear, weight in zip((layer.lora_A, layer.lora_B), pairs[name], strict=True):
            linear[ADAPTER].weight = nn.Parameter(weight.to(device), requires_grad=False)


def adapter_state(transformer: LTX2VideoTransformer3DModel) -> dict[str, Tensor]:
    """The adapter's tensors by key, detached but not copied; empty where there is none."""
    return {
        f"{name}.{part}.weight": getattr(layer, part)[ADAPTER].weight.detach()
        for name, layer in _layers(transformer)
        for part in ("lora_A", "lora_B")
    }


def load_adapter_state(transformer: LTX2VideoTransformer3DModel, state: dict[str, Tensor]) -> None:
    """Overwrite the present adapter. Raises ValueError unless keys and shapes are the same."""
    present = adapter_state(transformer)
    if differing := present.keys() ^ state.keys():
        raise ValueError(f"not this adapter's keys: {sorted(differing)[:3]} and so on")
    for key, tensor in present.items():
        if tensor.shape != state[key].shape:
            raise ValueError(f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}")
        tensor.copy_(state[key])


def remove_adapter(transformer: LTX2VideoTransformer3DModel) -> None:
    """Put the base layers back, whoever put the adapter in: the transformer is then as it was
    loaded, bit for bit. Does nothing where there is no adapter."""
    for name, layer in _layers(transformer):
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(transformer, "peft_config"):
        del transformer.peft_config
    transformer._hf_peft_config_loaded = False  # set by diffusers' own loader


def _layers(transformer: LTX2VideoTransformer3DModel) -> list[tuple[str, LoraLayer]]:
    return [
        (name, module)
        for name, module in transformer.named_modules()
        if isinstance(module, LoraLayer)
    ]
