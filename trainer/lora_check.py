"""Whether a LoRA file of a user can be used, found out before a GPU is touched (no torch).

    python -m trainer check-lora FILE... [--model FOLDER] [--out report.json]

The exit code is 0 when all files can be used, 2 when one is refused; the report says which and why.
Meant to be run in a child process without secrets, like everything that reads foreign files.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from preprocessing.report import Problem
from trainer.errors import LoraFileError
from trainer.lora_keys import (
    EXAMPLE_KEY,
    ModuleNames,
    Part,
    is_audio,
    ltx_linears,
    parse_key,
)
from trainer.safetensors_header import (
    MAX_FILE_BYTES,
    Header,
    TensorEntry,
    model_linears,
    read_header,
    shown,
)

MAX_RANK: Final = 4096
"""The width of the model: a LoRA of a higher rank is larger than what it adapts."""

_CHUNK_BYTES: Final = 16 * 1024**2
_EXPONENT: Final = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000}
"""All of these bits set: NaN or Inf."""
_DIFFUSERS_METADATA: Final = "lora_adapter_metadata"


@dataclass(frozen=True)
class AdaptedLayer:
    """One linear layer's pair in a file; ``scaling`` is alpha / rank."""

    module: str
    """The model's name for it."""
    a: TensorEntry
    """[rank, in]"""
    b: TensorEntry
    """[out, rank]"""
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def is_audio(self) -> bool:
        return is_audio(self.module)


@dataclass(frozen=True)
class CheckedLora:
    """A file whose form was checked; its numbers are read with `check_numbers`."""

    path: Path
    layers: tuple[AdaptedLayer, ...]
    metadata: dict[str, str]

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(sorted({layer.rank for layer in self.layers}))

    @property
    def has_audio(self) -> bool:
        return any(layer.is_audio for layer in self.layers)

    def describe(self) -> str:
        """For logs: layers, ranks, alphas."""
        ranks = " and ".join(str(rank) for rank in self.ranks[:3]) or "none"
        scalings = sorted({layer.scaling for layer in self.layers})
        alpha = "" if scalings == [1.0] else f", alpha / rank {scalings[0]:g} to {scalings[-1]:g}"
        return f"{len(self.layers)} layers of rank {ranks}{alpha}"


def read_lora(
    path: Path,
    linears: Mapping[str, tuple[int, int]] | None = None,
    *,
    max_bytes: int = MAX_FILE_BYTES,
) -> CheckedLora:
    """Check what ``path`` holds, by its header and its alphas; of any form in `lora_keys`.

    Every layer must be one of LTX-2.3's, by name; with ``linears`` (`model_linears`), one of that
    model's, and fit in size.
    Raises `LoraFileError`, whose message says what was found and what was wanted.
    """
    header = read_header(path, max_bytes=max_bytes)
    if not header.tensors:
        raise LoraFileError("the file is not a LoRA: it is empty")
    parts = _by_module(header)
    names = ModuleNames(ltx_linears() if linears is None else linears)
    _require_matches(parts, names)
    alphas = _Alphas(path, header.metadata)
    layers = {}
    for module, found in parts.items():
        a, b = _pair(module, found)
        name = names.find(module)
        assert name is not None, "_require_matches looked"
        if name in layers:
            raise LoraFileError(f"the file adapts {shown(name)} twice, under two names")
        layers[name] = AdaptedLayer(name, a, b, alphas.scaling(module, found, a.shape[0]))
        if linears is not None:
            _require_size(layers[name], linears[name])
    return CheckedLora(path, tuple(layers.values()), header.metadata)


def check_numbers(lora: CheckedLora) -> None:
    """Read all numbers once, 16 MB at a time. Raises `LoraFileError` for NaN and Inf."""
    with lora.path.open("rb") as file:
        for entry in (part for layer in lora.layers for part in (layer.a, layer.b)):
            bits = _EXPONENT[entry.dtype]
            kind = np.dtype("<u4" if entry.dtype == "F32" else "<u2")
            file.seek(entry.offset)
            left = entry.size_bytes
            while left:
                chunk = file.read(min(left, _CHUNK_BYTES))
                if not chunk:
                    raise LoraFileError("not a whole safetensors file; upload it again")
                left -= len(chunk)
                if ((np.frombuffer(chunk, kind) & bits) == bits).any():
                    raise LoraFileError(
                        f"{shown(entry.name)} holds NaN or Inf; the training diverged"
                    )


def _by_module(header: Header) -> dict[str, dict[Part, TensorEntry]]:
    """The file's tensors by module and part, in the file's order."""
    parts: dict[str, dict[Part, TensorEntry]] = {}
    for entry in header.tensors:
        key = parse_key(entry.name)
        found = parts.setdefault(key.module, {})
        if key.part in found:
            raise LoraFileError(
                f"{shown(entry.name)} and {shown(found[key.part].name)} mean the same tensor"
            )
        found[key.part] = entry
    return parts


def _require_matches(parts: Mapping[str, object], names: ModuleNames) -> None:
    """Every layer must be the model's."""
    unknown = [module for module in parts if names.find(module) is None]
    if not unknown:
        return
    some = ", ".join(shown(module) for module in unknown[:3])
    raise LoraFileError(
        f"{len(unknown)} of the {len(parts)} layers that this LoRA adapts are not in LTX-2.3: "
        f"{some}{' and so on' if len(unknown) > 3 else ''}. It was made for another model; keys "
        f"such as {EXAMPLE_KEY} are wanted"
    )


def _pair(module: str, found: Mapping[Part, TensorEntry]) -> tuple[TensorEntry, TensorEntry]:
    a, b = found.get("A"), found.get("B")
    if a is None or b is None:
        had = " and ".join(sorted(found))
        raise LoraFileError(f"the file is not a LoRA: of {shown(module)} it has {had} alone")
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or 0 in a.shape + b.shape:
        raise LoraFileError(
            f"{shown(module)} has A {list(a.shape)} and B {list(b.shape)}, not [rank, in] and "
            "[out, rank]"
        )
    if a.shape[0] > MAX_RANK:
        raise LoraFileError(f"{shown(module)} has rank {a.shape[0]}; at most {MAX_RANK} make sense")
    return a, b


def _require_size(layer: AdaptedLayer, wanted: tuple[int, int]) -> None:
    found = layer.a.shape[1], layer.b.shape[0]
    if found != wanted:
        raise LoraFileError(
            f"the LoRA's {layer.module} maps {found[0]} to {found[1]} features, the model's maps "
            f"{wanted[0]} to {wanted[1]}: it was made for another model than this LTX-2.3"
        )


class _Alphas:
    """The alphas of a file: tensors of their own, or what diffusers wrote into the metadata."""

    def __init__(self, path: Path, metadata: Mapping[str, str]) -> None:
        self._path = path
        self._config = _peft_config(metadata.get(_DIFFUSERS_METADATA))

    def scaling(self, module: str, found: Mapping[Part, TensorEntry], rank: int) -> float:
        """alpha / rank; 1 where the file says nothing."""
        if "alpha" in found:
            return self._read(found["alpha"]) / rank
        pattern = self._config.get("alpha_pattern")
        alpha = pattern.get(module) if isinstance(pattern, dict) else None
        alpha = self._config.get("lora_alpha") if alpha is None else alpha
        if alpha is None:
            return 1.0
        if type(alpha) not in (int, float) or not abs(alpha) <= sys.float_info.max:
            raise LoraFileError(f"the file's {_DIFFUSERS_METADATA} has the alpha {alpha!a:.40}")
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") is True else rank)

    def _read(self, entry: TensorEntry) -> float:
        if math.prod(entry.shape) != 1:
            raise LoraFileError(f"{shown(entry.name)} is {list(entry.shape)}, not one number")
        with self._path.open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size_bytes)
        if entry.dtype == "BF16":
            raw, kind = b"\0\0" + raw, "<f4"
        else:
            kind = "<f2" if entry.dtype == "F16" else "<f4"
        alpha = float(np.frombuffer(raw, kind)[0])
        if not math.isfinite(alpha):
            raise LoraFileError(f"{shown(entry.name)} holds NaN or Inf; the training diverged")
        return alpha


def _peft_config(text: str | None) -> dict[str, Any]:
    """PEFT's settings as diffusers saves them: JSON, each name with the component before it."""
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoraFileError(f"the file's {_DIFFUSERS_METADATA} is no JSON") from error
    if not isinstance(config, dict):
        raise LoraFileError(f"the file's {_DIFFUSERS_METADATA} is no JSON object")
    return {key.removeprefix("transformer."): value for key, value in config.items()}


class LoraFacts(BaseModel):
    """What a file that can be used holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size_bytes: int
    num_layers: int
    ranks: tuple[int, ...]
    has_audio: bool
    description: str


class LoraReport(BaseModel):
    """The report of ``check-lora``: the facts of all files, or why one was refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[LoraFacts, ...] = ()
    problem: Problem | None = None
    """``field`` is ``loras.0.path`` for the first file."""


def check_loras(files: Sequence[tuple[str, Path]], model: Path | None = None) -> LoraReport:
    """Check files, given with the names their user knows; the first bad one ends it.

    ``model`` is a folder in diffusers layout that the LoRAs must fit.
    """
    linears = None if model is None else model_linears(model)
    facts = []
    for index, (name, path) in enumerate(files):
        try:
            lora = read_lora(path, linears)
            check_numbers(lora)
        except LoraFileError as error:
            return LoraReport(problem=_problem(index, name, error))
        facts.append(_facts(name, lora))
    return LoraReport(files=tuple(facts))


def lora_field(index: int) -> str:
    """The request's field of one LoRA."""
    return f"loras.{index}.path"


def named(name: str, error: LoraFileError) -> str:
    """The message, with the file it is about."""
    return f"LoRA {shown(name)}: {error}"


def _problem(index: int, name: str, error: LoraFileError) -> Problem:
    return Problem(type=error.error_type, message=named(name, error), field=lora_field(index))


def _facts(name: str, lora: CheckedLora) -> LoraFacts:
    return LoraFacts(
        name=name,
        size_bytes=lora.path.stat().st_size,
        num_layers=len(lora.layers),
        ranks=lora.ranks,
        has_audio=lora.has_audio,
        description=lora.describe(),
    )
