"""Writing tensors to a file whose errors say what the system said."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
"""How Rust's ``std::io::Error`` writes itself."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """`safetensors.torch.save_file`, which hides a full disk in an error of its own: here what the
    system refuses is an `OSError` with its number."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        found = _OS_ERROR.search(str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
