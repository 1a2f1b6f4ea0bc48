"""A worker's surroundings without its processes: the real database and store in a folder."""

from pathlib import Path

import pytest

from app.db.engine import Database
from app.db.migrate import upgrade
from app.settings import Settings
from workers.runtime import Runtime


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    settings = Settings(data_dir=tmp_path / "data", broker="files", lease_s=6, heartbeat_s=1)
    settings.data_dir.mkdir()
    upgrade(settings.database_url)
    return Runtime(settings)


@pytest.fixture
def database(runtime: Runtime) -> Database:
    return runtime.database
