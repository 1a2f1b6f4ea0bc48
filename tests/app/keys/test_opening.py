"""The service is open to nobody, or to this machine alone, where there is no key."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from app.db.engine import Database
from app.db.models import ApiKey
from app.keys.opening import NoKey, require_key_at_start
from app.keys.table import FRESH_S
from app.settings import Settings
from tests.app.conftest import Gateway, running
from tests.app.keys.conftest import Key, make_key, revoke

BODY = {"training_data_url": "https://example.com/a.zip"}
REACHABLE = ["0.0.0.0", "192.168.1.5", "my-machine", "::"]


def start(folder: Path, **settings: Any) -> None:
    require_key_at_start(Settings(data_dir=folder, **settings))


@pytest.mark.parametrize("host", REACHABLE)
def test_reachable_without_a_key(tmp_path: Path, host: str) -> None:
    with pytest.raises(NoKey, match=r"no API key.*reelsmith keys create"):
        start(tmp_path, host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_loopback_no_key_is_needed(tmp_path: Path, host: str) -> None:
    start(tmp_path, host=host)


def test_a_key_of_the_environment_is_enough(tmp_path: Path) -> None:
    start(tmp_path, host="0.0.0.0", api_keys="one")


def test_a_key_of_the_database_is_enough_until_it_is_revoked(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    key = make_key(database)
    start(tmp_path, host="0.0.0.0", database_url=database_url)
    revoke(database, key)
    with pytest.raises(NoKey):
        start(tmp_path, host="0.0.0.0", database_url=database_url)


def test_the_gateway_itself_looks(tmp_path: Path, migrated_sqlite: Path) -> None:
    """For those who start it without the command line."""
    with pytest.raises(NoKey), running(tmp_path, migrated_sqlite, host="0.0.0.0"):
        pass


@pytest.mark.parametrize("command", ["serve", "up"])
def test_the_command_says_why_it_does_not_start(tmp_path: Path, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", command],
        env={"REELSMITH_HOST": "0.0.0.0", "REELSMITH_DATA_DIR": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "there is no API key" in done.stderr
    assert "Traceback" not in done.stderr


def status(gateway: Gateway, headers: dict[str, str] | None = None) -> int:
    return gateway.client.post("/t2v", json=BODY, headers=headers or {}).status_code


def soon(holds: Callable[[], bool]) -> bool:
    """Whether it holds before gateways have forgotten what they knew, or as soon as they have."""
    forgotten_at = time.monotonic() + FRESH_S
    while True:
        is_last = time.monotonic() > forgotten_at
        if (found := holds()) or is_last:
            return found


@pytest.fixture
def with_key(tmp_path: Path, migrated_sqlite: Path) -> tuple[Path, Key]:
    """A database with one key."""
    path = tmp_path / "with-key.db"
    shutil.copy(migrated_sqlite, path)
    database = Database(f"sqlite:///{path}")
    key = make_key(database)
    database.close()
    return path, key


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_revoking_the_last_key_closes_the_service(
    tmp_path: Path, with_key: tuple[Path, Key], host: str
) -> None:
    path, key = with_key
    with running(tmp_path, path, host=host) as gateway:
        assert (status(gateway), status(gateway, key.header)) == (401, 200)
        revoke(gateway.database, key)
        assert soon(lambda: status(gateway, key.header) == 401)
        assert status(gateway) == 401


def test_a_table_emptied_by_hand_opens_no_reachable_service(
    tmp_path: Path, with_key: tuple[Path, Key]
) -> None:
    path, key = with_key
    with running(tmp_path, path, host="0.0.0.0") as gateway:
        with gateway.database.write() as session:
            session.execute(delete(ApiKey))
        assert soon(lambda: status(gateway, key.header) == 401)
        assert status(gateway) == 401


def test_the_first_key_ends_single_user_mode(gateway: Gateway) -> None:
    assert status(gateway) == 200
    key = make_key(gateway.database)
    assert soon(lambda: status(gateway) == 401)
    assert status(gateway, key.header) == 200
