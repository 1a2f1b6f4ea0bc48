"""The service knows five modules of data of the libraries, and two of processes: where tests may
end one, and how one ends with its parent."""

import ast
from pathlib import Path

import app

DATA = {
    "preprocessing.rules",
    "trainer.capacity",
    "trainer.generation",
    "trainer.plan",
    "trainer.spec",
}
PROCESSES = {"preprocessing.failpoints", "preprocessing.lifetime"}
ALLOWED = DATA | PROCESSES
LIBRARIES = ("preprocessing", "trainer", "workers")


def imported(source: str) -> set[str]:
    """Modules that ``source`` imports, at its top or inside."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_only_data_of_the_libraries() -> None:
    folder = Path(app.__file__).parent
    used: dict[str, set[str]] = {}
    for path in folder.rglob("*.py"):
        for module in imported(path.read_text()):
            if module.split(".")[0] in LIBRARIES:
                used.setdefault(module, set()).add(path.name)
    assert set(used) == ALLOWED, used
