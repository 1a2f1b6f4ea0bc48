"""A full disk must be told as one, whatever library met it (R9)."""

import errno
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.tensor_file import save_tensors


@pytest.fixture
def no_file_above_a_kilobyte() -> Iterator[None]:
    """The nearest thing to a full disk that needs no disk of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_the_system_refuses_has_its_number(
    tmp_path: Path, no_file_above_a_kilobyte: None
) -> None:
    with pytest.raises(OSError, match="File too large") as raised:
        save_tensors({"a": torch.zeros(100_000)}, tmp_path / "file.safetensors")
    assert raised.value.errno == errno.EFBIG
    assert raised.value.filename == str(tmp_path / "file.safetensors")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_tensors({"a": torch.zeros(2)}, tmp_path / "none" / "file.safetensors")


def test_strided_tensors_come_back(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3).T
    save_tensors({"a": tensor}, tmp_path / "file.safetensors")
    assert torch.equal(load_file(tmp_path / "file.safetensors")["a"], tensor)
