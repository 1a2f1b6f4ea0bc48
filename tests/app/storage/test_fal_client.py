"""Uploads of the unmodified fal-client, pointed here as `spec/fal-protocol.md` 1.7 (c) says."""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.responses import JSONResponse

from app import replies
from app.auth import Authenticator
from app.db.engine import AsyncDatabase
from app.dev import free_port
from app.settings import Settings
from app.storage import make_storage
from app.storage.endpoints import router_for

API_KEY = "id:secret"
SCRIPT = """
import sys
import fal_client.client as wire
wire.REST_URL = wire.CDN_URL = sys.argv[1]
print(wire.SyncClient().upload_file(sys.argv[2]))
"""


@contextmanager
def serving(app: FastAPI, port: int, database: AsyncDatabase) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, lifespan="off"))

    async def serve() -> None:
        await server.serve()
        await database.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        while not server.started:
            thread.join(0.02)
            assert thread.is_alive(), "the server ended"
        yield
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    replies.install(app)
    return app


Upload = Callable[[Path], str]


@pytest.fixture
def upload(app: FastAPI, tmp_path: Path, migrated_sqlite: Path) -> Iterator[Upload]:
    """Uploads a file with the real client and returns its URL.

    In a process of its own: the client reads its settings when it is imported, and leaves its
    connections open.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = Settings(data_dir=tmp_path / "data", public_url=url, api_keys=(SecretStr(API_KEY),))
    settings.data_dir.mkdir()
    shutil.copy(migrated_sqlite, settings.data_dir / "reelsmith.db")
    database = AsyncDatabase(settings.database_url)
    owner = Authenticator.of(settings, database)
    app.include_router(router_for(make_storage(settings), settings, owner, database))

    def run(path: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, url, path],
            env={"PATH": os.environ["PATH"], "FAL_KEY": API_KEY},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with serving(app, port, database):
        yield run


def test_small_file(upload: Upload, tmp_path: Path) -> None:
    """C36, the small half."""
    path = tmp_path / "my clips.zip"
    path.write_bytes(os.urandom(200_000))
    answer = httpx.get(upload(path), trust_env=False)
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"] == "application/zip"
    assert "my_clips.zip" in answer.headers["content-disposition"]


def test_file_in_parts(upload: Upload, tmp_path: Path) -> None:
    """C36, the large half: 101 MiB, eleven parts, ten at a time."""
    block = os.urandom(1024 * 1024)
    path = tmp_path / "clips.zip"
    with path.open("wb") as file:
        for number in range(101):
            file.write(number.to_bytes(4) + block[4:])
    with httpx.stream("GET", upload(path), trust_env=False) as answer, path.open("rb") as file:
        assert answer.headers["content-length"] == str(path.stat().st_size)
        for chunk in answer.iter_raw():
            assert chunk == file.read(len(chunk))


class TestFallback:
    """C38: the upload route answers 500."""

    @pytest.fixture
    def app(self, app: FastAPI) -> FastAPI:
        @app.post("/files/upload")
        async def broken() -> JSONResponse:
            return JSONResponse({"detail": "broken"}, 500)

        return app

    def test_uploads_the_other_way(self, upload: Upload, tmp_path: Path) -> None:
        path = tmp_path / "clips.zip"
        path.write_bytes(b"clips")
        assert httpx.get(upload(path), trust_env=False).content == b"clips"
