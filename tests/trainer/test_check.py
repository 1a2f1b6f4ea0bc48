"""The artifact check: it accepts what was trained, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.adapter import adapter_state, add_adapter, load_adapter_state, remove_adapter
from trainer.check import check_artifact
from trainer.errors import ArtifactError
from trainer.lora_file import PREFIX, LoraMetadata, save_lora
from trainer.model import BaseModel

RANK = 4


def trained(tiny: BaseModel, *, with_audio: bool) -> LTX2VideoTransformer3DModel:
    transformer = tiny.transformer(with_audio=with_audio)
    add_adapter(transformer, RANK, with_audio)
    generator = torch.Generator().manual_seed(3)
    state = adapter_state(transformer)
    noise = {k: torch.randn(t.shape, generator=generator) * 0.1 for k, t in state.items()}
    load_adapter_state(transformer, noise)
    return transformer


def save(path: Path, transformer: LTX2VideoTransformer3DModel, *, with_audio: bool) -> None:
    metadata = LoraMetadata(
        training_type="t2v",
        rank=RANK,
        steps=1,
        width=64,
        height=64,
        num_frames=9,
        frame_rate="24",
        with_audio=with_audio,
    )
    save_lora(path, adapter_state(transformer), metadata)


@pytest.mark.parametrize("with_audio", [True, False], ids=["joint", "video-only"])
def test_a_good_file_passes_and_nothing_is_changed(
    tiny: BaseModel, tmp_path: Path, with_audio: bool
) -> None:
    path = tmp_path / "lora.safetensors"
    transformer = trained(tiny, with_audio=with_audio)
    save(path, transformer, with_audio=with_audio)
    before = {key: tensor.clone() for key, tensor in adapter_state(transformer).items()}
    opened: list[LTX2VideoTransformer3DModel] = []

    def fresh() -> LTX2VideoTransformer3DModel:
        opened.append(tiny.transformer(with_audio=with_audio))
        return opened[-1]

    check_artifact(path, transformer, fresh)
    assert adapter_state(opened[0]) == {}
    after = adapter_state(transformer)
    assert all(torch.equal(before[key], tensor) for key, tensor in after.items())


def test_a_bf16_base_with_fp32_adapters_passes_too(tiny: BaseModel, tmp_path: Path) -> None:
    """The precisions of a GPU: autocast must be the same on both sides."""
    path = tmp_path / "lora.safetensors"

    def base() -> LTX2VideoTransformer3DModel:
        return tiny.transformer(with_audio=True).to(torch.bfloat16)

    transformer = base()
    add_adapter(transformer, RANK, True)
    generator = torch.Generator().manual_seed(3)
    state = adapter_state(transformer)
    noise = {k: torch.randn(t.shape, generator=generator) * 0.1 for k, t in state.items()}
    load_adapter_state(transformer, noise)
    save(path, transformer, with_audio=True)
    check_artifact(path, transformer, base)
    assert {tensor.dtype for tensor in adapter_state(transformer).values()} == {torch.float32}


def test_the_trained_model_itself_may_serve_when_stripped(tiny: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    transformer = trained(tiny, with_audio=False)
    save(path, transformer, with_audio=False)

    def strip() -> LTX2VideoTransformer3DModel:
        remove_adapter(transformer)
        return transformer

    check_artifact(path, transformer, strip)
    base = tiny.transformer(with_audio=False).state_dict()
    stripped = transformer.state_dict()
    assert stripped.keys() == base.keys()
    assert all(torch.equal(stripped[key], tensor) for key, tensor in base.items())


Change = Callable[[dict[str, Tensor]], None]


def first_b(state: dict[str, Tensor]) -> str:
    return min(key for key in state if key.endswith("lora_B.weight"))


def nan(state: dict[str, Tensor]) -> None:
    state[first_b(state)].fill_(float("nan"))


def one_ulp(state: dict[str, Tensor]) -> None:
    state[first_b(state)].view(torch.int16).view(-1)[0] += 1


def one_missing(state: dict[str, Tensor]) -> None:
    key = first_b(state)
    del state[key], state[key.replace("lora_B", "lora_A")]


def one_more(state: dict[str, Tensor]) -> None:
    module = f"{PREFIX}transformer_blocks.0.ff.net.2"
    state[f"{module}.lora_A.weight"] = torch.zeros(RANK, 256, dtype=torch.bfloat16)
    state[f"{module}.lora_B.weight"] = torch.zeros(64, RANK, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(nan, "NaN or Inf", id="nan"),
        pytest.param(one_ulp, "is not what was trained", id="one-bit"),
        pytest.param(one_missing, "other tensors than the adapter", id="a-pair-missing"),
        pytest.param(one_more, "other tensors than the adapter", id="a-pair-too-many"),
    ],
)
def test_a_spoiled_file_fails(
    tiny: BaseModel, tmp_path: Path, change: Change, message: str
) -> None:
    path = tmp_path / "lora.safetensors"
    transformer = trained(tiny, with_audio=False)
    save(path, transformer, with_audio=False)
    state = load_file(path)
    change(state)
    save_file(state, path)
    with pytest.raises(ArtifactError, match=message):
        check_artifact(path, transformer, lambda: tiny.transformer(with_audio=False))


def test_a_missing_file_fails(tiny: BaseModel, tmp_path: Path) -> None:
    transformer = trained(tiny, with_audio=False)
    with pytest.raises(ArtifactError, match="can't be read back"):
        check_artifact(tmp_path / "none", transformer, lambda: tiny.transformer(with_audio=False))


def test_an_adapter_that_learned_nothing_fails(tiny: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    transformer = tiny.transformer(with_audio=False)
    add_adapter(transformer, RANK, False)
    save(path, transformer, with_audio=False)
    with pytest.raises(ArtifactError, match="every lora_B is zero"):
        check_artifact(path, transformer, lambda: tiny.transformer(with_audio=False))


def test_a_model_that_gives_another_output_fails(tiny: BaseModel, tmp_path: Path) -> None:
    """The file is right, the base it would be used with is not the one it was trained on."""
    path = tmp_path / "lora.safetensors"
    transformer = trained(tiny, with_audio=False)
    save(path, transformer, with_audio=False)

    def other_base() -> LTX2VideoTransformer3DModel:
        base = tiny.transformer(with_audio=False)
        with torch.no_grad():
            base.proj_out.bias.add_(1e-4)
        return base

    with pytest.raises(ArtifactError, match=r"differ by up to 0\.0001"):
        check_artifact(path, transformer, other_base)


def test_a_model_without_the_modules_fails(tiny: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    transformer = trained(tiny, with_audio=True)
    save(path, transformer, with_audio=True)
    with pytest.raises(ArtifactError, match="does not fit its base model"):
        check_artifact(path, transformer, lambda: tiny.transformer(with_audio=False))
