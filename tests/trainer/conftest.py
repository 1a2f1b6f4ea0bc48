"""The tiny model, built once per test run."""

from pathlib import Path

import pytest

from tests.trainer.generations import Runner
from tests.trainer.jobs import make_dataset
from tests.trainer.loras import metadata, trained
from trainer.adapter import adapter_state
from trainer.lora_file import save_lora
from trainer.model import BaseModel
from trainer.run import ModelCache


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


@pytest.fixture(scope="module")
def models() -> ModelCache:
    """As in the worker's child: what one job loaded serves the next."""
    return ModelCache()


@pytest.fixture
def runner(tmp_path: Path, cache: Path, models: ModelCache) -> Runner:
    return Runner(tmp_path, cache, models)


@pytest.fixture(scope="session")
def lora(tiny: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_lora(path, adapter_state(trained(tiny, with_audio=True)), metadata(with_audio=True))
    return path
