"""The official single file: written from tiny in the official naming, read, and refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.errors import ModelError
from trainer.model import BaseModel
from trainer.official_names import COMPONENTS, to_diffusers, to_official
from trainer.single_file import converted_folder, to_folder, to_single_file
from trainer.stored import read_folder, read_header


@pytest.fixture(scope="module")
def official(tiny: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("official") / "ltx-2.3-22b-dev.safetensors"
    to_single_file(tiny.folder, file)
    return file


NAMES = {
    # what the official file is known to have (`ltx-training.md` 2.6, its readers elsewhere)
    "model.diffusion_model.patchify_proj.weight": "transformer proj_in.weight",
    "model.diffusion_model.adaln_single.linear.bias": "transformer time_embed.linear.bias",
    "model.diffusion_model.audio_prompt_adaln_single.linear.weight": (
        "transformer audio_prompt_adaln.linear.weight"
    ),
    "model.diffusion_model.av_ca_a2v_gate_adaln_single.linear.weight": (
        "transformer av_cross_attn_video_a2v_gate.linear.weight"
    ),
    "model.diffusion_model.transformer_blocks.7.scale_shift_table_a2v_ca_audio": (
        "transformer transformer_blocks.7.audio_a2v_cross_attn_scale_shift_table"
    ),
    "model.diffusion_model.transformer_blocks.0.audio_attn1.k_norm.weight": (
        "transformer transformer_blocks.0.audio_attn1.norm_k.weight"
    ),
    "model.diffusion_model.audio_embeddings_connector.transformer_1d_blocks.0.attn1.q_norm.bias": (
        "connectors audio_connector.transformer_blocks.0.attn1.norm_q.bias"
    ),
    "text_embedding_projection.audio_aggregate_embed.weight": (
        "connectors audio_text_proj_in.weight"
    ),
    "vae.encoder.down_blocks.8.res_blocks.1.conv1.conv.weight": (
        "vae encoder.mid_block.resnets.1.conv1.conv.weight"
    ),
    "vae.encoder.down_blocks.2.res_blocks.0.conv1.conv.weight": (
        "vae encoder.down_blocks.1.resnets.0.conv1.conv.weight"
    ),
    "vae.decoder.up_blocks.7.conv.conv.bias": "vae decoder.up_blocks.3.upsamplers.0.conv.conv.bias",
    "vae.decoder.up_blocks.0.res_blocks.0.conv2.conv.bias": (
        "vae decoder.mid_block.resnets.0.conv2.conv.bias"
    ),
    "vae.per_channel_statistics.std-of-means": "vae latents_std",
    "audio_vae.per_channel_statistics.mean-of-means": "audio_vae latents_mean",
    "vocoder.vocoder.ups.0.weight": "vocoder vocoder.upsamplers.0.weight",
    "vocoder.bwe_generator.resblocks.3.acts1.0.downsample.lowpass.filter": (
        "vocoder bwe_generator.resnets.3.acts1.0.downsample.filter"
    ),
    "vocoder.bwe_generator.act_post.act.alpha": "vocoder bwe_generator.act_out.act.alpha",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_both_ways(name: str) -> None:
    component, ours = NAMES[name].split()
    assert to_diffusers(name) == (component, ours)
    assert to_official(component, ours) == name


@pytest.mark.parametrize(
    "name",
    ["vae.per_channel_statistics.mean-of-stds", "vae.per_channel_statistics.channel", "ema.step"],
)
def test_what_nobody_needs(name: str) -> None:
    assert to_diffusers(name) is None


def test_there_and_back_is_the_same(tiny: BaseModel, official: Path, tmp_path: Path) -> None:
    """Configs, names, bytes; in small shards with an index."""
    to_folder(official, tmp_path, shard_bytes=1_000_000)
    assert (tmp_path / "transformer/diffusion_pytorch_model.safetensors.index.json").is_file()
    for component in COMPONENTS:
        ours, theirs = (
            json.loads((folder / component / "config.json").read_text())
            for folder in (tiny.folder, tmp_path)
        )
        assert ours == theirs, component
        stored = read_folder(tmp_path / component)
        assert stored.keys() == read_folder(tiny.folder / component).keys()
    transformer = tmp_path / "transformer"
    tensors: dict[str, Any] = {}
    for path in transformer.glob("*.safetensors"):
        tensors |= load_file(path)
    expected = tiny.transformer(with_audio=True).state_dict()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())
    again = tmp_path / "again.safetensors"
    to_single_file(tmp_path, again)
    first, second = read_header(official), read_header(again)
    assert first[1] == second[1]
    assert {n: s.shape for n, s in first[0].items()} == {n: s.shape for n, s in second[0].items()}


def test_it_is_opened_like_any_other_model(tiny: BaseModel, official: Path, tmp_path: Path) -> None:
    base = BaseModel.open(str(official), tmp_path, "cpu", text_encoder=tiny.folder)
    assert base.id == official.name
    assert not base.is_tiny
    ours = base.text_encoder().encode(["a lake"])
    theirs = tiny.text_encoder().encode(["a lake"])
    assert torch.equal(ours[0].video, theirs[0].video)
    for name in ("video_vae", "audio_vae", "vocoder"):
        pair = [getattr(model, name)().state_dict() for model in (base, tiny)]
        assert all(torch.equal(pair[0][key], pair[1][key]) for key in pair[1]), name
    before = (base.folder / "source.json").stat().st_ino
    again = BaseModel.open(str(official), tmp_path, "cpu", text_encoder=tiny.folder)
    assert (again.folder / "source.json").stat().st_ino == before  # not converted twice


def test_two_at_a_time_convert_once(tiny: BaseModel, official: Path, tmp_path: Path) -> None:
    """And what a killed one left is cleared away: it would be as large as the file."""
    left = tmp_path / "converted/.ltx.1.part"
    (left / "transformer").mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(converted_folder, official, tiny.folder, tmp_path) for _ in range(2)]
        first, second = (one.result() for one in both)
    assert first == second
    assert list((tmp_path / "converted").iterdir()) == [first]
    assert read_folder(first / "vae").keys() == read_folder(tiny.folder / "vae").keys()


def changed(official: Path, target: Path, **changes: Any) -> Path:
    """The file with other metadata, or other tensors."""
    tensors = load_file(official)
    with safe_open(official, framework="pt") as file:
        metadata = dict(file.metadata())
    for key in changes.get("drop", ()):
        del tensors[key]
    tensors |= changes.get("tensors", {})
    metadata |= changes.get("metadata", {})
    for key in changes.get("without", ()):
        del metadata[key]
    save_file(tensors, target, metadata)
    return target


def config(**transformer: Any) -> dict[str, str]:
    return {"config": json.dumps({"transformer": transformer}), "model_version": ""}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "2.5 by its version": ({"metadata": {"model_version": "2.5.0"}}, "is LTX-2.5; only LTX-2.3"),
    "2.5 by its config": ({"metadata": config(ff_bias=False)}, "is LTX-2.5; only LTX-2.3"),
    "2.0 by its version": ({"metadata": {"model_version": "2.0"}}, "is LTX-2.0; only LTX-2.3"),
    "no metadata": ({"without": ["config"]}, "no official checkpoint"),
    "fp8": (
        {"tensors": {"model.diffusion_model.x": torch.zeros(1).to(torch.float8_e4m3fn)}},
        "quantised already",
    ),
    "a tensor gone": (
        {"drop": ["vae.decoder.conv_in.conv.bias"]},
        "vae.decoder.conv_in.conv.bias is missing",
    ),
    "a component gone": (
        {"drop": ["vocoder.vocoder.conv_pre.weight"]},
        "lacks what its vocoder is known by",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(official: Path, tmp_path: Path, tiny: BaseModel, case: str) -> None:
    changes, message = REFUSED[case]
    file = changed(official, tmp_path / "model.safetensors", **changes)
    with pytest.raises(ModelError, match=message):
        BaseModel.open(str(file), tmp_path / "cache", "cpu", text_encoder=tiny.folder)
    assert not list((tmp_path / "cache/converted").iterdir())  # nothing half done stays


def test_half_a_file(official: Path, tmp_path: Path, tiny: BaseModel) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(official.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="ends too early"):
        BaseModel.open(str(file), tmp_path, "cpu", text_encoder=tiny.folder)


@pytest.mark.parametrize("given", [None, "empty", "another"])
def test_the_text_encoder_must_be_named(official: Path, tmp_path: Path, given: str | None) -> None:
    folder = None if given is None else tmp_path / given
    if folder is not None:
        folder.mkdir()
    if given == "another":
        assert folder is not None
        (folder / "config.json").write_text('{"architectures": ["Gemma4Model"]}')
    expected = {None: "REELSMITH_TEXT_ENCODER", "empty": "no config.json", "another": "Gemma4Model"}
    with pytest.raises(ModelError, match=expected[given]):
        BaseModel.open(str(official), tmp_path, "cpu", text_encoder=folder)
