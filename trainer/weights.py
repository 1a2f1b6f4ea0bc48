"""Weights from safetensors files to where they are used, one tensor at a time.

A tensor goes from the file to the device, in the device's precision, and is quantised there; the
host never holds more than what it is reading (`ltx-training.md` 5.1: the transformer alone is
38 GB). Works on a folder in diffusers layout, with an index of shards or without.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.offload import offloaded_blocks
from trainer.quantised import Precision, linears_to_quantise, quantise_linear

REOPEN_BYTES: Final = 2**30
"""After so much was read of a file it is opened anew: what was read of a mapped file counts as this
process's memory for as long as it is open."""


def shards(folder: Path, names: set[str]) -> dict[Path, set[str]]:
    """Which of ``names`` are in which file of ``folder``; those that are in none are left out.

    With an index, only files that hold something wanted are opened at all.
    """
    found: dict[Path, set[str]] = {}
    for index in sorted(folder.glob("*.safetensors.index.json")):
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        for name in names & places.keys():
            found.setdefault(folder / places[name], set()).add(name)
        return found
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if here := names & set(file.keys()):
                found[path] = here
    return found


def read(
    places: Mapping[Path, set[str]], device: torch.device, *, reopen_bytes: int = REOPEN_BYTES
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of ``places`` with its name, on ``device``, as it is stored, in file order.

    Raises `ModelError` for a file that is missing or damaged.
    """
    for path in sorted(places):
        waiting = sorted(places[path])
        while waiting:
            try:
                with safe_open(path, framework="pt", device=str(device)) as file:
                    num_bytes = 0
                    while waiting and num_bytes < reopen_bytes:
                        name = waiting.pop(0)
                        tensor = file.get_tensor(name)
                        num_bytes += tensor.nbytes
                        yield name, tensor
                        del tensor
            except (SafetensorError, FileNotFoundError) as error:
                raise ModelError(
                    f"{path.name} of the model can't be read ({error}). Download it again."
                ) from error


def load_into(
    module: nn.Module,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    *,
    place: "Placer | None" = None,
) -> None:
    """Give ``module`` (on meta) its parameters and buffers out of ``folder``.

    Raises `ModelError` when some are not there.
    """
    place = place or Placer()
    wanted = set(module.state_dict().keys())
    places = shards(folder, wanted)
    if missing := wanted - set().union(*places.values()):
        raise ModelError(
            f"The {folder.name} of the model lacks {len(missing)} tensors, such as "
            f"{min(missing)}. Download the model again."
        )
    for name, tensor in read(places, device):
        place(module, name, tensor.to(dtype))


class Placer:
    """What becomes of a tensor that was read: it takes its place in the module, where it is."""

    def __call__(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        owner, _, child = name.rpartition(".")
        parent: Any = module.get_submodule(owner)
        if child in parent._parameters:
            parent._parameters[child] = nn.Parameter(tensor, requires_grad=False)
        else:
            parent._buffers[child] = tensor


class TransformerPlacer(Placer):
    """Quantises matrices as they come, and sends blocks that are to be offloaded to the host."""

    def __init__(self, transformer: Any, precision: Precision, num_offloaded: int) -> None:
        self._precision = precision
        self._quantised = linears_to_quantise(transformer) if precision != "full" else set()
        blocks = len(transformer.transformer_blocks)
        indices = offloaded_blocks(blocks, num_offloaded) if num_offloaded else []
        self._host = tuple(f"transformer_blocks.{index}." for index in indices)

    def __call__(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        stays_on_host = bool(self._host) and name.startswith(self._host)
        owner, _, child = name.rpartition(".")
        if owner not in self._quantised or child != "weight":
            super().__call__(module, name, tensor.cpu() if stays_on_host else tensor)
            return
        super().__call__(module, name, tensor)
        quantise_linear(module, owner, self._precision)
        if stays_on_host:
            quantised: Any = module.get_submodule(owner)
            for kept in (quantised.weight, quantised.scale):
                kept.data = kept.data.cpu()
