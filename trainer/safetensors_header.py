"""The header of a safetensors file that nobody vouches for, read before any tensor (no torch).

The format is 8 bytes of length, so much JSON, then the tensors' bytes without a gap. The library's
own parser takes 20 s for 600,000 empty tensors and keeps the last of two equal keys
(`reliability.md` 4.4, L8 and L11); here everything has a limit and a sentence.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.errors import LoraFileError

MAX_FILE_BYTES: Final = 3 * 1024**3
"""Bytes. The largest LoRA of this trainer (rank 128, all attentions, bf16) has 1.71 GB; fal's
inference endpoint accepts 3 GB."""

MAX_HEADER_BYTES: Final = 4 * 1024**2
"""Bytes. 2304 tensors need 0.4 MB, and other trainers add notes; more is an attack on the parser
(`reliability.md` L9)."""

MAX_TENSORS: Final = 10_000
"""A and B for every linear of the real model, with alphas, are 8,000 (`reliability.md` L8)."""

MAX_NAME_CHARS: Final = 256
"""Of a tensor's name; the model's longest has 60."""

MAX_DIMS: Final = 8
"""Of a tensor; a LoRA's have two, a convolution's five."""

MAX_NUMBER: Final = 2**63 - 1
"""In a shape or an offset. JSON knows numbers of 4,300 digits, and a thousand of them multiplied
are minutes of work."""

FLOAT_BYTES: Final = {"BF16": 2, "F16": 2, "F32": 4}
"""The dtypes that a LoRA may have, and their bytes per number."""

_LENGTH_BYTES: Final = 8
_PICKLES: Final = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""What torch.save and pickle begin with."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: where its bytes lie in the file, and how to read them."""

    name: str
    dtype: str
    """One of `FLOAT_BYTES`."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the file's beginning."""
    size_bytes: int


@dataclass(frozen=True)
class Header:
    """A checked header: the tensors fill the file exactly, in the order of their bytes."""

    tensors: tuple[TensorEntry, ...]
    metadata: dict[str, str]


def read_header(path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> Header:
    """Check the container and return what is in it. Reads the header only.

    Raises `LoraFileError`: a pickle, cut short, too large, too many tensors, JSON of another form,
    a key twice, a dtype that is no LoRA's, offsets with gaps or overlaps.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise LoraFileError(f"the LoRA has {size} bytes; at most {max_bytes} are accepted")
    with path.open("rb") as file:
        start = file.read(_LENGTH_BYTES)
        if start.startswith(_PICKLES):
            raise LoraFileError(
                "a pickle, not a safetensors file; pickles can run code: convert it"
            )
        length = int.from_bytes(start, "little")
        if len(start) < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
            raise _not_whole("its header is longer than the file")
        if length > MAX_HEADER_BYTES:
            raise LoraFileError(
                f"the file's header has {length} bytes; at most {MAX_HEADER_BYTES} are accepted"
            )
        content = _parsed(file.read(length))
    metadata = _metadata(content.pop("__metadata__", {}))
    if len(content) > MAX_TENSORS:
        raise LoraFileError(
            f"the file has {len(content)} tensors; at most {MAX_TENSORS} are accepted"
        )
    begin = _LENGTH_BYTES + length
    entries = sorted(
        (_entry(name, value, begin) for name, value in content.items()),
        key=lambda entry: (entry.offset, entry.size_bytes),
    )
    end = begin
    for entry in entries:
        if entry.offset != end:
            raise _not_whole(f"the bytes of {entry.name} overlap others or leave a gap")
        end += entry.size_bytes
    if end != size:
        raise _not_whole(f"its tensors end at byte {end} of {size}")
    return Header(tuple(entries), metadata)


def shown(name: str) -> str:
    """A foreign name for messages and logs: on one line, escaped, not too long.

    >>> shown("a" * 300)[-5:], shown("../x\\n")
    ("...a'", "'../x\\\\n'")
    """
    return ascii(name if len(name) <= MAX_NAME_CHARS else f"{name[:100]}...{name[-1]}")


def _not_whole(why: str) -> LoraFileError:
    return LoraFileError(f"not a whole safetensors file ({why}); upload it again")


def _parsed(header: bytes) -> dict[str, Any]:
    try:
        content = json.loads(header.decode("utf-8"), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise _not_whole(f"its header is no JSON: {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise _not_whole("its header is no JSON object")
    return content


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise LoraFileError(f"the file's header has the key {shown(twice)} twice; save it anew")
    return content


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _not_whole("its metadata are not strings by name")
    return value


def _entry(name: str, value: Any, begin: int) -> TensorEntry:
    """One checked tensor; ``begin`` is where the tensors' bytes begin."""
    if not name or len(name) > MAX_NAME_CHARS or not name.isascii() or not name.isprintable():
        raise LoraFileError(f"the file has a tensor with a name that is none: {shown(name)}")
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, end]}:
            numbers = [*shape, start, end]
        case _:
            raise _not_whole(f"{name} is described in another form")
    if dtype not in FLOAT_BYTES:
        raise LoraFileError(f"{name} is {shown(dtype)[1:-1]}; a LoRA has {', '.join(FLOAT_BYTES)}")
    if any(type(number) is not int or not 0 <= number <= MAX_NUMBER for number in numbers):
        raise _not_whole(f"{name} has a shape or offsets that are no whole numbers of 64 bits")
    if len(shape) > MAX_DIMS:
        raise _not_whole(f"{name} has {len(shape)} dimensions; at most {MAX_DIMS} are accepted")
    size_bytes = math.prod(shape) * FLOAT_BYTES[dtype]
    if end - start != size_bytes:
        raise _not_whole(f"{name} has {end - start} bytes where its shape takes {size_bytes}")
    return TensorEntry(name, dtype, tuple(shape), begin + start, size_bytes)


def model_linears(folder: Path) -> dict[str, tuple[int, int]]:
    """The linear layers of a model's transformer, by name: (inputs, outputs).

    ``folder`` is the model's, in diffusers layout; only the headers of its weights are read.
    """
    linears = {}
    for name, shape in _model_shapes(folder / "transformer"):
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(shape) == 2:
            linears[module] = (shape[1], shape[0])
    return linears


def _model_shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(_LENGTH_BYTES), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, entry["shape"]
