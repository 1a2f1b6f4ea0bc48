"""A gateway that really listens, and the commands pointed at it."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from app.cli import main
from app.client.service import Service
from app.db.engine import Database
from app.db.models import Stage
from app.dev import free_port
from app.gateway import create_app
from app.requests import lifecycle
from app.requests.lifecycle import Claim
from app.settings import Settings
from app.storage import make_storage
from tests.app.test_lifecycle import claimed, do
from workers.files import file_entry

KEY = "id:secret"
OTHER = "another-key"


class Listening(uvicorn.Server):
    """Says when it listens, and can begin again on its port."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()


@dataclass
class Served:
    """A gateway of this process on a port of its own."""

    settings: Settings
    database: Database
    url: str
    server: Listening | None = None
    thread: threading.Thread | None = None
    sent: list[str] = field(default_factory=list)

    def start(self) -> None:
        app = create_app(self.settings, send=self.sent.append)
        config = uvicorn.Config(
            app, port=self.settings.port, log_config=None, timeout_graceful_shutdown=1
        )
        self.server = Listening(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        assert self.server.up.wait(30)

    def stop(self) -> None:
        if self.server is not None and self.thread is not None:
            self.server.should_exit = True
            self.thread.join(30)
            assert not self.thread.is_alive()
        self.server = self.thread = None

    @property
    def storage(self) -> Any:
        return make_storage(self.settings)

    def store(self, name: str, content: bytes, folder: Path) -> dict[str, Any]:
        """A file as a row holds it."""
        path = folder / name
        path.write_bytes(content)
        stored = self.storage.put_file(f"outputs/{name}", path, content_type="video/mp4")
        return file_entry(stored, name)

    def train(self) -> Claim:
        """Prepare the oldest request and begin to train it, as workers do."""
        do(self.database, lifecycle.advance, claimed(self.database), {})
        return claimed(self.database, Stage.TRAIN)

    def complete(self, held: Claim, body: dict[str, Any]) -> None:
        do(self.database, lifecycle.complete, held, body, 100, 12.5)


@contextmanager
def serving(folder: Path, database_url: str, **more: Any) -> Iterator[Served]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = Settings(
        **{
            "data_dir": folder,
            "database_url": database_url,
            "port": port,
            "public_url": url,
            "log_level": "ERROR",
            **more,
        }
    )
    served = Served(settings, Database(database_url), url)
    served.start()
    try:
        yield served
    finally:
        served.stop()
        served.database.close()


@pytest.fixture
def served(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Served]:
    """Without keys."""
    shutil.copy(migrated_sqlite, tmp_path / "reelsmith.db")
    with serving(tmp_path / "service", f"sqlite:///{tmp_path / 'reelsmith.db'}") as served:
        yield served


@pytest.fixture
def service(served: Served) -> Iterator[Service]:
    with Service(served.url) as service:
        yield service


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests."""
    for name in ("REELSMITH_URL", "REELSMITH_KEY", "FAL_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


Command = Callable[..., Result]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `reelsmith` with these arguments."""

    def run(*args: object, **env: str) -> Result:
        result = CliRunner().invoke(main, [str(arg) for arg in args], env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two clips, a caption of one, and what lies about in folders."""
    folder = tmp_path / "clips"
    (folder / "more").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name, content in {
        "cat.mp4": b"a" * 3000,
        "cat.txt": b"a cat",
        "more/dog.MOV": b"b" * 2000,
        "notes.psd": b"c",
        ".DS_Store": b"d",
        ".git/config": b"e",
    }.items():
        (folder / name).write_bytes(content)
    return folder
