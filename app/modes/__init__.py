"""The registry of modes. Adding one is one new file here that defines ``MODE``.

Routes, OpenAPI, preparation, training, previews and billing ask the registry; nothing outside this
folder knows a mode by name. Files without ``MODE`` hold what several modes share.
"""

import importlib
import pkgutil

from app.modes.base import AnyMode, Mode


def _found() -> dict[str, AnyMode]:
    """path -> mode, in the order of the files' names."""
    modes: dict[str, AnyMode] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        mode = getattr(importlib.import_module(f"{__name__}.{name}"), "MODE", None)
        if mode is None:
            continue
        if not isinstance(mode, Mode):
            raise TypeError(f"MODE of {__name__}.{name} must be a Mode, not {mode!r}")
        if mode.path in modes:
            raise ValueError(f"{__name__}.{name}: the path {mode.path!r} is taken")
        modes[mode.path] = mode
    return modes


_BY_PATH = _found()


def all() -> tuple[AnyMode, ...]:
    """Every mode of this service."""
    return tuple(_BY_PATH.values())


def by_path(path: str) -> AnyMode:
    """The mode served at ``/{path}``. Raises `KeyError` for a path that has none."""
    return _BY_PATH[path]
