"""The LoRA file: what is in it, who reads it, what is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LTX2Pipeline, LTX2VideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer.loras import RANK, metadata, trained, velocities
from trainer.adapter import adapter_state, load_adapter_state
from trainer.errors import LoraFileError
from trainer.lora_file import (
    BASE_MODEL,
    PREFIX,
    check_fits,
    file_state,
    load_lora,
    save_lora,
)
from trainer.model import BaseModel


@pytest.fixture(scope="module")
def joint(tiny: BaseModel) -> LTX2VideoTransformer3DModel:
    return trained(tiny, with_audio=True)


@pytest.fixture(scope="module")
def video_only(tiny: BaseModel) -> LTX2VideoTransformer3DModel:
    return trained(tiny, with_audio=False)


@pytest.mark.parametrize("with_audio", [True, False], ids=["joint", "video-only"])
def test_keys_dtypes_and_metadata(
    request: pytest.FixtureRequest, tmp_path: Path, with_audio: bool
) -> None:
    transformer = request.getfixturevalue("joint" if with_audio else "video_only")
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_state(transformer), metadata(with_audio=with_audio))

    tensors = load_file(path)
    assert set(tensors) == {PREFIX + key for key in adapter_state(transformer)}
    assert any("audio" in key for key in tensors) == with_audio
    for key, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16
        assert RANK in tensor.shape
        assert "alpha" not in key
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "base_model": BASE_MODEL,
            "training_type": "t2v",
            "rank": str(RANK),
            "alpha": str(RANK),
            "steps": "250",
            "trigger_phrase": "tronlög0 «ß»",
            "dataset_hash": "ab12",
            "width": "768",
            "height": "448",
            "num_frames": "89",
            "frame_rate": "24",
            "with_audio": "true" if with_audio else "false",
            "software": file.metadata()["software"],
        }
        assert file.metadata()["software"].startswith("reelsmith ")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_is_loaded_is_what_was_saved(
    joint: LTX2VideoTransformer3DModel, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_state(joint), metadata(with_audio=True))
    lora = load_lora(path)
    expected = file_state(adapter_state(joint))
    assert lora.state.keys() == expected.keys()
    assert all(torch.equal(lora.state[key], tensor) for key, tensor in expected.items())
    assert lora.rank == RANK
    assert lora.has_audio
    assert lora.metadata["trigger_phrase"] == "tronlög0 «ß»"


def test_equal_loras_are_equal_files(joint: LTX2VideoTransformer3DModel, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path in paths:
        save_lora(path, adapter_state(joint), metadata(with_audio=True))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    header_bytes = int.from_bytes(paths[0].read_bytes()[:8], "little")
    header = json.loads(paths[0].read_bytes()[8 : 8 + header_bytes])
    assert list(header["__metadata__"]) == list(metadata(with_audio=True).to_strings())


@pytest.mark.parametrize("with_audio", [True, False], ids=["joint", "video-only"])
def test_diffusers_gives_what_the_trainer_gives(
    tiny: BaseModel, tmp_path: Path, with_audio: bool
) -> None:
    """`load_lora_weights` on the pipeline, as users do it: the same velocities to the last bit."""
    transformer = trained(tiny, with_audio=with_audio)
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_state(transformer), metadata(with_audio=with_audio))
    load_adapter_state(transformer, load_lora(path).state)  # the file holds bf16
    ours = velocities(transformer, with_audio=with_audio)

    pipeline = LTX2Pipeline.from_pretrained(tiny.folder)
    base = velocities(pipeline.transformer, with_audio=with_audio)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    theirs = velocities(pipeline.transformer, with_audio=with_audio)
    assert len(ours) == len(theirs) == 1 + with_audio
    for our, their, plain in zip(ours, theirs, base, strict=True):
        assert (our - their).abs().max().item() == 0.0
        assert (our - plain).abs().max().item() > 1e-3


Spoil = Callable[[Path], None]


def resave(change: Callable[[dict[str, Tensor]], None]) -> Spoil:
    def spoil(path: Path) -> None:
        state = load_file(path)
        change(state)
        save_file(state, path)

    return spoil


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def set_first(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(state: dict[str, Tensor]) -> None:
        state[min(state)].view(-1)[0] = value

    return change


def drop_one(state: dict[str, Tensor]) -> None:
    del state[min(state)]


def other_rank(state: dict[str, Tensor]) -> None:
    state[min(state)] = torch.zeros(RANK + 1, state[min(state)].shape[1])


def integers(state: dict[str, Tensor]) -> None:
    state[min(state)] = torch.zeros(state[min(state)].shape, dtype=torch.int8)


def flat(state: dict[str, Tensor]) -> None:
    state[min(state)] = torch.zeros(RANK)


def without_prefix(state: dict[str, Tensor]) -> None:
    state["transformer_blocks.0.attn1.to_q.lora_A.weight"] = torch.zeros(RANK, 64)


def huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 64 * 1024**2))
    with path.open("r+b") as file:
        file.truncate(65 * 1024**2)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(truncate, "not a whole safetensors file", id="truncated"),
        pytest.param(lambda p: p.write_bytes(b""), "not a whole safetensors file", id="empty"),
        pytest.param(lambda p: p.write_bytes(b"\xff" * 64), "not a whole", id="garbage"),
        pytest.param(
            lambda p: p.write_bytes(struct.pack("<Q", 8) + b"{{{{{{{{"), "not a whole", id="no-json"
        ),
        pytest.param(lambda p: torch.save({}, p), "a pickle", id="pickle-renamed"),
        pytest.param(huge_header, "header has", id="huge-header"),
        pytest.param(resave(set_first(float("nan"))), "NaN or Inf", id="nan"),
        pytest.param(resave(set_first(float("inf"))), "NaN or Inf", id="inf"),
        pytest.param(resave(drop_one), "not its partner", id="half-a-pair"),
        pytest.param(resave(other_rank), "not \\[rank, in\\]", id="ranks-differ"),
        pytest.param(resave(flat), "not \\[rank, in\\]", id="one-dimension"),
        pytest.param(resave(integers), "is I8", id="integers"),
        pytest.param(resave(without_prefix), "unexpected key", id="no-prefix"),
        pytest.param(resave(lambda state: state.clear()), "it is empty", id="no-tensors"),
    ],
)
def test_bad_files_are_refused(
    video_only: LTX2VideoTransformer3DModel, tmp_path: Path, spoil: Spoil, message: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_state(video_only), metadata(with_audio=False))
    spoil(path)
    with pytest.raises(LoraFileError, match=message):
        load_lora(path)


def test_a_file_over_the_limit_is_not_opened(
    video_only: LTX2VideoTransformer3DModel, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_state(video_only), metadata(with_audio=False))
    size = path.stat().st_size
    assert load_lora(path, max_bytes=size)
    with pytest.raises(LoraFileError, match=f"has {size} bytes"):
        load_lora(path, max_bytes=size - 1)


def test_a_lora_of_another_model_is_refused(
    tiny: BaseModel, joint: LTX2VideoTransformer3DModel, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    save_lora(path, adapter_state(joint), metadata(with_audio=True))
    lora = load_lora(path)
    check_fits(lora, tiny.transformer(with_audio=True))
    with pytest.raises(LoraFileError, match="does not have"):
        check_fits(lora, tiny.transformer(with_audio=False))
    config = dict(tiny.transformer(with_audio=False).config)
    wider = LTX2VideoTransformer3DModel.from_config({**config, "cross_attention_dim": 128})
    with pytest.raises(LoraFileError, match="features"):
        check_fits(lora, wider)


def test_our_own_mistakes_are_not_saved(joint: LTX2VideoTransformer3DModel, tmp_path: Path) -> None:
    state = adapter_state(joint)
    with pytest.raises(ValueError, match="must not hold audio"):
        save_lora(tmp_path / "a", state, metadata(with_audio=False))
    with pytest.raises(ValueError, match="has rank 4"):
        save_lora(tmp_path / "b", state, metadata(with_audio=True, rank=8))
    del state[min(state)]
    with pytest.raises(ValueError, match="not its partner"):
        save_lora(tmp_path / "c", state, metadata(with_audio=True))
    assert not list(tmp_path.iterdir())
