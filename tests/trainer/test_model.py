"""Which models are accepted, and that the tiny one is a real one."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTX2Pipeline

from trainer.errors import ModelError
from trainer.model import BaseModel
from trainer.tiny import build_tiny, tiny_folder


@pytest.fixture
def edited(tiny: BaseModel, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model with changes to a component's config."""

    def edit(component: str, **changes: Any) -> Path:
        folder = tmp_path / "SomeModel"
        shutil.copytree(tiny.folder, folder)
        path = folder / component / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return edit


@pytest.mark.parametrize(
    ("component", "changes", "named"),
    [
        pytest.param("transformer", {"use_prompt_embeddings": True}, "LTX-2.0", id="2.0"),
        pytest.param("connectors", {"per_modality_projections": False}, "LTX-2.0", id="2.0 text"),
        pytest.param("transformer", {"ff_bias": False}, "LTX-2.5", id="2.5"),
        pytest.param("transformer", {"use_prompt_adaln_single": False}, "LTX-2.5", id="2.5 adaln"),
        pytest.param("transformer", {"gated_attn": False}, "unknown LTX-2 variant", id="variant"),
        pytest.param("transformer", {"_class_name": "Flux"}, "not an LTX-2 model", id="Flux"),
    ],
)
def test_other_models_are_refused_by_name(
    edited: Callable[..., Path], component: str, changes: dict[str, Any], named: str
) -> None:
    folder = edited(component, **changes)
    with pytest.raises(ModelError, match=f"SomeModel is .*{named}"):
        BaseModel.open(str(folder), folder.parent, "cpu")


def test_what_is_missing_is_named(edited: Callable[..., Path]) -> None:
    folder = edited("transformer")
    BaseModel.open(str(folder), folder.parent, "cpu")
    shutil.rmtree(folder / "vocoder")
    with pytest.raises(ModelError, match=r"lacks vocoder\."):
        BaseModel.open(str(folder), folder.parent, "cpu")
    (folder / "model_index.json").unlink()
    with pytest.raises(ModelError, match="diffusers layout"):
        BaseModel.open(str(folder), folder.parent, "cpu")


def test_a_transformer_with_tensors_missing_is_not_used(edited: Callable[..., Path]) -> None:
    folder = edited("transformer", num_layers=5)
    base = BaseModel.open(str(folder), folder.parent, "cpu")
    with pytest.raises(ModelError, match=r"lacks \d+ tensors, such as transformer_blocks.4"):
        base.transformer(with_audio=False)


def test_a_name_that_is_nothing_gets_advice(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder here nor"):
        BaseModel.open("no/such/model", tmp_path, "cpu")


def test_every_component_is_frozen_and_evaluating(tiny: BaseModel) -> None:
    text = tiny.text_encoder()
    modules = [text.gemma, text.connectors, tiny.video_vae(), tiny.audio_vae(), tiny.vocoder()]
    modules.append(tiny.transformer(with_audio=True))
    for module in modules:
        assert not module.training
        assert not [p for p in module.parameters() if p.requires_grad]
    assert tiny.is_tiny


def test_our_loader_reads_what_diffusers_reads(tiny: BaseModel) -> None:
    pipeline = LTX2Pipeline.from_pretrained(tiny.folder)
    theirs = pipeline.transformer.state_dict()
    ours = tiny.transformer(with_audio=True).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert sum(tensor.numel() for tensor in ours.values()) == 617_760


def test_the_tiny_model_is_the_same_on_every_build(tiny: BaseModel, tmp_path: Path) -> None:
    torch.manual_seed(5)
    build_tiny(tmp_path / "again")
    again = BaseModel("tiny", tmp_path / "again", torch.device("cpu"))
    assert again.fingerprint == tiny.fingerprint


def test_two_processes_may_build_it_at_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        folders = set(pool.map(tiny_folder, [tmp_path] * 2))
    assert len(folders) == 1
    assert [path for path in tmp_path.iterdir()] == list(folders)


def test_the_fingerprint_sees_a_changed_weight(edited: Callable[..., Path]) -> None:
    folder = edited("transformer")
    before = BaseModel.open(str(folder), folder.parent, "cpu").fingerprint
    (weights,) = (folder / "transformer").glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert BaseModel.open(str(folder), folder.parent, "cpu").fingerprint != before
