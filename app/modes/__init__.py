"""The registry of modes. Adding one is one new file here and its name in `_ALL`.

Routes, OpenAPI, preparation, training, previews and billing ask the registry; nothing outside this
folder knows a mode by name.
"""

from app.modes.base import AnyMode
from app.modes.t2v import T2V

_ALL: tuple[AnyMode, ...] = (T2V,)
_BY_PATH = {mode.path: mode for mode in _ALL}


def all() -> tuple[AnyMode, ...]:
    """Every mode of this service."""
    return _ALL


def by_path(path: str) -> AnyMode:
    """The mode served at ``/{path}``. Raises `KeyError` for a path that has none."""
    return _BY_PATH[path]
