"""The LoRA file: what users download, and what ComfyUI, diffusers and others read.

Keys are ``diffusion_model.<module>.lora_A.weight`` [r, in] and ``.lora_B.weight`` [out, r], bf16,
contiguous, with alpha equal to the rank: some readers ignore alpha (`ltx-training.md` 3). See
docs/lora-files.md.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn

from trainer.errors import LoraFileError
from trainer.safetensors_header import MAX_FILE_BYTES, read_header

BASE_MODEL: Final = "diffusers/LTX-2.3-Diffusers"
"""Hub id of the model these LoRAs are for."""

PREFIX: Final = "diffusion_model."
"""diffusers drops every key without it; ComfyUI and ltx-pipelines strip it."""

_KEY: Final = re.compile(
    re.escape(PREFIX) + r"(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight"
)


@dataclass(frozen=True)
class LoraMetadata:
    """What the file says of itself; every value is written as a string.

    ``rank`` is also its alpha. ``dataset_hash`` is hex, ``width`` and ``height`` are pixels,
    ``num_frames`` pixel frames, ``frame_rate`` frames per second of the training clips.
    """

    training_type: str
    rank: int
    steps: int
    width: int
    height: int
    num_frames: int
    frame_rate: str
    with_audio: bool
    trigger_phrase: str = ""
    dataset_hash: str = ""
    base_model: str = BASE_MODEL

    def to_strings(self) -> dict[str, str]:
        return {
            "format": "pt",
            "base_model": self.base_model,
            "training_type": self.training_type,
            "rank": str(self.rank),
            "alpha": str(self.rank),
            "steps": str(self.steps),
            "trigger_phrase": self.trigger_phrase,
            "dataset_hash": self.dataset_hash,
            "width": str(self.width),
            "height": str(self.height),
            "num_frames": str(self.num_frames),
            "frame_rate": self.frame_rate,
            "with_audio": "true" if self.with_audio else "false",
            "software": f"reelsmith {version('reelsmith')}",
        }


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in memory. ``state`` has an adapter's keys (no prefix), so
    ``transformer_blocks.0.attn1.to_q.lora_A.weight`` [r, in]; ``metadata`` is as in the file."""

    state: dict[str, Tensor]
    metadata: dict[str, str]

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the adapted modules."""
        return tuple(key.removesuffix(_A) for key in self.state if key.endswith(_A))

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(self.state[module + _A].shape[0] for module in self.modules)

    @property
    def has_audio(self) -> bool:
        return any("audio" in module for module in self.modules)


_A: Final = ".lora_A.weight"
_B: Final = ".lora_B.weight"


def file_state(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An adapter as the file holds it, before the prefix: bf16, on the CPU, contiguous.

    Its alpha is its rank (`trainer/adapter.py`), so there is nothing to fold into B.
    """
    return {
        key: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for key, tensor in adapter.items()
    }


def save_lora(path: Path, adapter: Mapping[str, Tensor], metadata: LoraMetadata) -> None:
    """Write the adapter (as `trainer.adapter.adapter_state` returns it) to ``path``, whole or not.

    Raises `ValueError` for what only a bug can bring here: an unpaired key, audio adapters in a
    video-only LoRA, a rank that isn't the metadata's.
    """
    lora = LoraFile(file_state(adapter), metadata.to_strings())
    _check_pairs({key: tuple(tensor.shape) for key, tensor in lora.state.items()})
    if lora.rank != metadata.rank:
        raise ValueError(f"the adapter has rank {lora.rank}, its metadata says {metadata.rank}")
    if lora.has_audio and not metadata.with_audio:
        raise ValueError("a video-only LoRA must not hold audio adapters")
    aside = path.with_name(path.name + ".part")
    with aside.open("wb") as file:
        _write_safetensors(file, {PREFIX + key: t for key, t in lora.state.items()}, lora.metadata)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def load_lora(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> LoraFile:
    """Read a LoRA file of ours, on the CPU and in the file's dtype, trusting nothing about it.

    For files of other forms there is `lora_check.read_lora`. The header is checked before a tensor
    is read. Raises `LoraFileError` when the file is not a
    whole safetensors file, is larger than ``max_bytes``, or holds anything but pairs of finite
    A [r, in] and B [out, r] under the prefix.
    """
    header = read_header(path, max_bytes=max_bytes)
    for entry in header.tensors:
        _check_name(entry.name)
    try:
        _check_pairs({entry.name.removeprefix(PREFIX): entry.shape for entry in header.tensors})
    except ValueError as error:
        raise LoraFileError(f"the file is not a LoRA: {error}") from error
    with safe_open(path, framework="pt", device="cpu") as file:
        state = {
            entry.name.removeprefix(PREFIX): file.get_tensor(entry.name) for entry in header.tensors
        }
    for key, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise LoraFileError(f"{PREFIX}{key} holds NaN or Inf; the training diverged")
    return LoraFile(state, header.metadata)


def check_fits(lora: LoraFile, transformer: nn.Module) -> None:
    """Raise `LoraFileError` unless every module of the LoRA is a linear of this transformer."""
    for module in lora.modules:
        try:
            layer = transformer.get_submodule(module)
        except AttributeError:
            raise LoraFileError(
                f"the LoRA adapts {module}, which this model does not have: "
                f"it was made for another model than {BASE_MODEL}"
            ) from None
        wanted = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
        found = (lora.state[module + _A].shape[1], lora.state[module + _B].shape[0])
        if wanted != found:
            raise LoraFileError(
                f"the LoRA's {module} maps {found[0]} to {found[1]} features, the model's maps "
                f"{wanted[0]} to {wanted[1]}: it was made for another model than {BASE_MODEL}"
            )


def _write_safetensors(
    file: BinaryIO, state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """bf16 tensors in safetensors' format, in the order given.

    `safetensors.torch.save_file` shuffles the metadata anew in every process, so that two equal
    LoRAs would differ as files.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for key, tensor in state.items():
        start, end = end, end + tensor.nbytes
        header[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data starts aligned
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for tensor in state.values():
        file.write(tensor.view(torch.uint8).numpy().tobytes())


def _check_name(name: str) -> None:
    if not _KEY.fullmatch(name):
        raise LoraFileError(
            f"unexpected key {name!r}; a LoRA for {BASE_MODEL} has "
            f"{PREFIX}<module>.lora_A.weight and .lora_B.weight"
        )


def _check_pairs(shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ValueError` unless the keys are pairs of A [r, in] and B [out, r]."""
    modules = dict.fromkeys(key.removesuffix(_A).removesuffix(_B) for key in shapes)
    if not modules:
        raise ValueError("it is empty")
    for module in modules:
        a, b = shapes.get(module + _A), shapes.get(module + _B)
        if a is None or b is None:
            raise ValueError(f"{module} has {'B' if a is None else 'A'}, but not its partner")
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in a + b:
            raise ValueError(
                f"{module} has A {list(a)} and B {list(b)}, not [rank, in] and [out, rank]"
            )
