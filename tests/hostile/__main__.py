"""Run every case and print what the dearest of each group took.

python -m tests.hostile [pytest's arguments]
"""

import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.hostile import costs


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder) / "costs.jsonl"
        noted.touch()
        os.environ[costs.FILE] = str(noted)
        code = pytest.main([str(Path(__file__).parent), "-q", *arguments])
        print(costs.table(noted))
    return int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
