"""Weights on their way in: shards, what is missing, and how much of them the host holds."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trainer.errors import ModelError
from trainer.weights import load_into, read, shards

CPU = torch.device("cpu")
NUM_LAYERS, WIDTH = 24, 1024


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 MB in two shards, as diffusers writes them."""
    folder = tmp_path_factory.mktemp("checkpoint") / "transformer"
    folder.mkdir()
    places = {}
    for number in range(2):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        layers = range(number * NUM_LAYERS // 2, (number + 1) * NUM_LAYERS // 2)
        tensors = {f"{layer}.weight": torch.full((WIDTH, WIDTH), float(layer)) for layer in layers}
        save_file(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def layers(count: int) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count))


def test_a_sharded_folder_is_loaded_in_the_wanted_precision(checkpoint: Path) -> None:
    module = layers(NUM_LAYERS)
    load_into(module, checkpoint, CPU, torch.bfloat16)
    for number, layer in enumerate(module):
        assert layer.weight.dtype == torch.bfloat16
        assert (layer.weight == number).all()


def test_only_files_with_something_wanted_are_opened(checkpoint: Path, tmp_path: Path) -> None:
    places = shards(checkpoint, {"0.weight", "3.weight", "none.weight"})
    assert {path.name: names for path, names in places.items()} == {
        "model-00001-of-00002.safetensors": {"0.weight", "3.weight"}
    }


def test_what_is_missing_is_named(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match=r"transformer .* lacks 2 tensors, such as 24.weight"):
        load_into(layers(NUM_LAYERS + 2), checkpoint, CPU, torch.float32)


def test_a_missing_shard_is_an_error_that_says_so(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.safetensors of the model can't be read"):
        list(read({tmp_path / "gone.safetensors": {"0.weight"}}, CPU))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_host_never_holds_a_copy(checkpoint: Path) -> None:
    """Tensors that go elsewhere, one by one: a fifth of the files is in memory at most."""

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    places = shards(checkpoint, {f"{number}.weight" for number in range(NUM_LAYERS)})
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    checksum = sum(tensor[0, 0].item() for _, tensor in read(places, CPU, reopen_bytes=size // 10))
    assert checksum == sum(range(NUM_LAYERS))
    touched = 0.0
    for _, tensor in read(places, CPU, reopen_bytes=size // 10):
        touched += tensor.sum().item()
    assert touched == checksum * WIDTH * WIDTH
    assert status("VmHWM") - before < size / 5
