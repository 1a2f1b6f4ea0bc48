"""L1 to L13: LoRA files, at what judges them before a tensor is loaded, and at the command."""

import gzip
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.fetch import Fetcher, FetchError, FetchPolicy
from app.storage.local import LocalStorage
from app.storage.signing import UrlSigner
from tests.app.fetch.server import answer, scripted_server
from tests.hostile.costs import MEBIBYTE, forget_peak, peak_bytes
from trainer.lora_check import check_loras
from trainer.lora_keys import ltx_linears
from trainer.safetensors_header import MAX_FILE_BYTES, MAX_TENSORS

MAX_GROWTH_BYTES = 200 * MEBIBYTE
MODULE = ltx_linears()[0]
NUM_IN, NUM_OUT = 64, 32
"""Any size will do: which one it should be only the model says."""
A, B = f"transformer.{MODULE}.lora_A.weight", f"transformer.{MODULE}.lora_B.weight"
RANK = 8


def entry(shape: list[int], start: int, dtype: str = "BF16", size: int | None = None) -> Any:
    length = 2 if size is None else size
    for side in shape:
        length *= side if size is None else 1
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + length]}


def pair(**changes: Any) -> dict[str, Any]:
    """The header of a LoRA of one layer, with changes."""
    a_bytes = 2 * RANK * NUM_IN
    return {A: entry([RANK, NUM_IN], 0), B: entry([NUM_OUT, RANK], a_bytes), **changes}


def data(fill: bytes = b"\x00\x00") -> bytes:
    return fill * (RANK * NUM_IN + NUM_OUT * RANK)


def file_of(header: dict[str, Any] | bytes, content: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def sparse(head: bytes, size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.write_bytes(head)
        with path.open("r+b") as file:
            file.truncate(size)

    return make


class Evil:
    """Makes a folder when its pickle is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(path.with_name("evil"))))


def torch_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(path.with_name("evil"))))


def many_tensors(count: int) -> bytes:
    one = b'"t%d": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}'
    return file_of(b"{" + b", ".join(one % number for number in range(count)) + b"}")


def twice() -> bytes:
    inner = json.dumps(pair())[1:-1]
    return file_of(b"{" + inner.encode() + b", " + inner.encode() + b"}", data())


def described(*shape: object, start: object = 0) -> bytes:
    """The header of one tensor, its numbers written as they are: `json` makes none of thousands
    of digits."""
    numbers = ", ".join(map(str, shape))
    facts = f'"dtype": "BF16", "shape": [{numbers}], "data_offsets": [{start}, 8]'
    return f'{{"{A}": {{{facts}}}}}'.encode()


NINES = "9" * 4_000
A_BYTES = 2 * RANK * NUM_IN
NARROW = {"data_offsets": [A_BYTES, A_BYTES + 2 * NUM_OUT * 4], "shape": [NUM_OUT, 4]}
FILES: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    # id: (bytes or who writes them, words of the refusal)
    "L1-header-of-2-63": (struct.pack("<Q", 2**63) + b"{}", "longer than the file"),
    "L2-header-of-101-MB": (
        sparse(struct.pack("<Q", 101 * 10**6) + b"{", 102 * 10**6),
        "at most",
    ),
    "L3-shape-of-10-18": (file_of({A: entry([10**18], 0, size=8)}, bytes(8)), "bytes where"),
    "L4-shape-of-2-33-squared": (
        file_of({A: entry([2**33, 2**33], 0, size=8)}, bytes(8)),
        "bytes where",
    ),
    "L4-numbers-of-4000-digits": (file_of(described(*[NINES] * 1000)), "64 bits"),
    "L4-an-offset-of-4000-digits": (file_of(described(1, start=NINES)), "64 bits"),
    "L4-half-a-million-dimensions": (file_of(described(*[9] * 500_000)), "dimensions"),
    "L5-overlap": (file_of(pair(**{B: entry([NUM_OUT, RANK], 0)}), data()), "overlap"),
    "L6-gap": (
        file_of(pair(**{B: entry([NUM_OUT, RANK], A_BYTES + 8)}), data() + bytes(8)),
        "gap",
    ),
    "L7-trailing-bytes": (file_of(pair(), data() + bytes(8)), "end at byte"),
    "L8-600000-tensors": (lambda path: path.write_bytes(many_tensors(600_000)), "at most"),
    "L8-one-tensor-too-many": (many_tensors(MAX_TENSORS + 1), "at most"),
    "L9-50-MB-of-metadata": (
        lambda path: path.write_bytes(file_of({"__metadata__": {"a": "x" * 50 * 10**6}})),
        "at most",
    ),
    "L9-metadata-of-no-strings": (
        file_of({"__metadata__": {"a": 1}, **pair()}, data()),
        "metadata",
    ),
    "L10-not-a-number": (file_of(pair(), data(b"\xc0\x7f")), "NaN or Inf"),
    "L10-infinite": (file_of(pair(), data(b"\x80\x7f")), "NaN or Inf"),
    "L10-an-alpha-of-400-digits": (
        file_of(
            {
                "__metadata__": {"lora_adapter_metadata": f'{{"lora_alpha": {"9" * 400}}}'},
                **pair(),
            },
            data(),
        ),
        "has the alpha 999",
    ),
    "L10-an-alpha-that-is-none": (
        file_of(
            {"__metadata__": {"lora_adapter_metadata": '{"lora_alpha": "\u202e\u00e9"}'}, **pair()},
            data(),
        ),
        "has the alpha '\\u202e",
    ),
    "L10-two-ranks": (file_of(pair(**{B: {**entry([1], 0), **NARROW}}),
                              bytes(A_BYTES + 2 * NUM_OUT * 4)), "not [rank, in]"),
    "L10-rank-0": (file_of({A: entry([0, NUM_IN], 0), B: entry([NUM_OUT, 0], 0)}), "not [rank"),
    "L10-another-models-keys": (
        file_of({
            "lora_unet_down_blocks_0.lora_A.weight": entry([1, 1], 0),
            "lora_unet_down_blocks_0.lora_B.weight": entry([1, 1], 2),
        }, bytes(4)),
        "not in LTX-2.3",
    ),
    "L10-no-lora": (file_of({"weight": entry([2], 0)}, bytes(4)), "LoRA"),
    "L10-f64": (file_of({A: entry([1], 0, "F64", size=8)}, bytes(8)), "F64"),
    "L10-integers": (file_of({A: entry([1], 0, "I64", size=8)}, bytes(8)), "I64"),
    "L11-a-path-and-a-break": (
        file_of({"../../x\0\n.lora_A.weight": entry([1], 0)}, bytes(2)),
        "name that is none",
    ),
    "L11-a-key-twice": (twice(), "twice"),
    "L12-pickle": (pickled, "pickle"),
    "L12-torch-archive": (torch_archive, "pickle"),
    "L13-3-GB-and-a-byte": (sparse(b"\x02" + bytes(7) + b"{}", MAX_FILE_BYTES + 1), "at most"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_refused(tmp_path: Path, case: str) -> None:
    content, words = FILES[case]
    path = tmp_path / "lora.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    forget_peak()
    before = peak_bytes()
    problem = check_loras([("my/lora\x1b.safetensors", path)]).problem
    assert peak_bytes() - before < MAX_GROWTH_BYTES
    assert problem is not None
    assert words in problem.message
    assert problem.message.isprintable()
    assert problem.message.isascii()
    assert len(problem.message) < 600
    assert str(tmp_path) not in problem.message
    assert problem.field == "loras.0.path"
    assert not (tmp_path / "evil").exists()


def test_L10_a_good_one_is_accepted(tmp_path: Path) -> None:
    """And so it is what is wrong that the others are refused for."""
    path = tmp_path / "lora.safetensors"
    path.write_bytes(file_of(pair(), data()))
    report = check_loras([("mine", path)])
    assert report.problem is None
    assert report.files[0].ranks == (RANK,)


@pytest.mark.parametrize("make", [pickled, torch_archive])
def test_L12_the_command_runs_no_code(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "lora.safetensors"
    make(path)
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "check-lora", str(path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "evil").exists()


BOMB = gzip.compress(bytes(10_000_000))
DOWNLOADS = {
    "L13-too-large-by-its-length": answer(b"x", length=MAX_FILE_BYTES + 1),
    "L13-gzip-bomb": answer(BOMB, "Content-Encoding: gzip"),
}


@pytest.mark.parametrize("case", DOWNLOADS)
def test_download(tmp_path: Path, case: str) -> None:
    """The fetcher's limits hold for LoRAs as for everything else."""
    store = LocalStorage(tmp_path / "store", UrlSigner(b"k" * 32, "http://a"), url_expiry_s=60)
    with scripted_server() as server:
        server.scripts = [DOWNLOADS[case]]
        fetcher = Fetcher(FetchPolicy.allowing(["127.0.0.1"], [server.port]), store)
        with pytest.raises(FetchError):
            fetcher.download(server.url, tmp_path / "lora", max_bytes=MAX_FILE_BYTES)
    assert not list(tmp_path.glob("lora*"))
