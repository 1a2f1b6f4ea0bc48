"""Safetensors files as bytes: what is in them, and new ones out of pieces of others.

A checkpoint of 46 GB is renamed and cut up without any of its numbers passing through this
process: a header is written, then byte ranges are copied. The format is a length, a JSON header
and the bytes (https://github.com/huggingface/safetensors#format).
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.errors import ModelError

MAX_HEADER_BYTES: Final = 100 * 2**20
"""What the format's own library refuses to read."""
_COPY_BYTES: Final = 16 * 2**20
_ALIGNMENT: Final = 8


@dataclass(frozen=True)
class Stored:
    """One tensor in one file. ``start`` and ``size`` are bytes of the file."""

    path: Path
    dtype: str
    """As safetensors names it, such as ``BF16``."""
    shape: tuple[int, ...]
    start: int
    size: int


def read_header(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of a safetensors file by name, and its metadata.

    Raises `ModelError` for anything that is not whole.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        begin, size = 8 + length, path.stat().st_size
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            if begin + end > size:
                raise ValueError("it ends too early")
            tensors[name] = Stored(
                path, entry["dtype"], tuple(entry["shape"]), begin + start, end - start
            )
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(
            f"{path.name} is no whole safetensors file ({error}). Download it again."
        ) from error
    return tensors, metadata


def read_folder(folder: Path) -> dict[str, Stored]:
    """All tensors of the safetensors files in ``folder``."""
    tensors: dict[str, Stored] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_header(path)[0]
    return tensors


def write_file(path: Path, tensors: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """A safetensors file of these tensors; appears whole or not at all. Raises OSError."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, stored in tensors.items():
        end = offset + stored.size
        header[name] = {
            "dtype": stored.dtype,
            "shape": list(stored.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            file.write(struct.pack("<Q", len(text)))
            file.write(text)
            _copy(tensors.values(), file)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_shards(folder: Path, name: str, tensors: Mapping[str, Stored], *, max_bytes: int) -> None:
    """``name``.safetensors in ``folder``, or shards of at most ``max_bytes`` with their index, as
    diffusers reads them."""
    shards: list[dict[str, Stored]] = [{}]
    for key, stored in sorted(tensors.items()):
        if shards[-1] and sum(one.size for one in shards[-1].values()) + stored.size > max_bytes:
            shards.append({})
        shards[-1][key] = stored
    metadata = {"format": "pt"}
    if len(shards) == 1:
        write_file(folder / f"{name}.safetensors", shards[0], metadata)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{name}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard, metadata)
        places |= dict.fromkeys(shard, file)
    total = sum(stored.size for stored in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _copy(tensors: Iterable[Stored], target: Any) -> None:
    source: Any = None
    opened: Path | None = None
    try:
        for stored in tensors:
            if stored.path != opened:
                if source is not None:
                    source.close()
                source, opened = stored.path.open("rb"), stored.path
            source.seek(stored.start)
            left = stored.size
            while left:
                part = source.read(min(left, _COPY_BYTES))
                target.write(part)
                left -= len(part)
    finally:
        if source is not None:
            source.close()
