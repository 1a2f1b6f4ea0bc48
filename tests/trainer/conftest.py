"""The tiny model, built once per test run."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.jobs import make_dataset
from trainer.model import BaseModel


@pytest.fixture(scope="session", autouse=True)
def _imports_are_no_garbage() -> Iterator[None]:
    """Every job collects garbage seven times, and each time goes through all of diffusers."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared like a machine's: the tiny model and what was encoded."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny(cache: Path) -> BaseModel:
    return BaseModel.open("tiny", cache, "cpu")


@pytest.fixture(scope="session")
def silent_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("silent") / "dataset")


@pytest.fixture(scope="session")
def sounding_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("sounding") / "dataset", with_audio=True)
