"""`reelsmith keys`, as an operator types it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from app.cli import main
from app.db.engine import Database
from app.keys import store
from app.settings import Settings
from tests.app.conftest import submit

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on a folder where no service has run yet."""
    monkeypatch.setenv("REELSMITH_DATA_DIR", str(tmp_path / "data"))
    return lambda *words: CliRunner().invoke(main, ["keys", *words])


def made(run: Run, *options: str) -> str:
    """The id of a new key."""
    result = run("create", "--name", "Ann", *options)
    assert result.exit_code == 0, result.output
    return result.stdout.partition(":")[0]


def keys() -> dict[str, store.ApiKey]:
    database = Database(Settings().database_url)
    with database.read() as session:
        found = {key.id: key for key in store.every(session)}
    database.close()
    return found


def test_create_prints_the_key_once(run: Run) -> None:
    result = run("create", "--name", " Ann ", "--max-queued", "5", "--max-storage", "50GB")
    assert result.exit_code == 0
    key = result.stdout.strip()
    id = key.partition(":")[0]
    assert f"id: {id}" in result.stderr
    row = keys()[id]
    assert (row.name, row.max_queued, row.max_running) == ("Ann", 5, None)
    assert row.max_storage_bytes == 50 * 10**9
    assert row.digest == store.digest_of(key)
    assert key not in run("list").output


def test_the_key_lies_nowhere_on_disk(run: Run, tmp_path: Path) -> None:
    """T3."""
    key = run("create", "--name", "Ann").stdout.strip()
    secret = key.partition(":")[2].encode()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_bytes()]


def test_keys_differ_and_are_long(run: Run) -> None:
    found = [run("create", "--name", "Ann").stdout.strip() for _ in range(3)]
    assert len({key.partition(":")[2] for key in found}) == 3
    assert all(len(key.partition(":")[2]) >= 43 for key in found)  # 256 bits in base64
    assert all(key.isascii() and key.isprintable() and " " not in key for key in found)


def test_list(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no keys" in run("list").stdout
    id = made(run, "--max-running", "2", "--max-storage", "1GiB")
    database = Database(Settings().database_url)
    submit(database, owner=id)
    database.close()
    monkeypatch.setenv("REELSMITH_API_KEYS", "one,two")
    shown = run("list").stdout
    (line,) = [line for line in shown.splitlines() if id in line]
    assert line.split("  ")[0].strip() == id
    for cell in ("Ann", "1", "0 of 2", "0 B of 1.1 GB", "open"):
        assert cell in line
    assert "2 more in REELSMITH_API_KEYS" in shown


def test_names_are_shown_as_they_are(run: Run) -> None:
    run("create", "--name", "[bold]x[/bold] " + "y" * 80)
    assert "[bold]x[/bold] " + "y" * 80 in run("list").stdout


def test_revoke(run: Run) -> None:
    id = made(run)
    assert run("revoke", id).exit_code == 0
    revoked_at = keys()[id].revoked_at
    assert revoked_at is not None
    assert run("revoke", id).exit_code == 0
    assert keys()[id].revoked_at == revoked_at
    assert "revoked" in run("list").stdout


def test_limits_change_one_by_one(run: Run) -> None:
    id = made(run, "--max-queued", "5", "--max-running", "2")
    assert run("limits", id, "--max-queued", "none", "--max-storage", "3TB").exit_code == 0
    row = keys()[id]
    assert (row.max_queued, row.max_running, row.max_storage_bytes) == (None, 2, 3 * 10**12)
    assert run("limits", id).stdout.split("\n")[:3] == [
        "max queued: none",
        "max running: 2",
        "max storage: 3.0 TB",
    ]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["create"], id="no name"),
        pytest.param(["create", "--name", " "], id="an empty name"),
        pytest.param(["create", "--name", "a\x1b[31m"], id="a name that paints"),
        pytest.param(["create", "--name", "a" * 101], id="a long name"),
        pytest.param(["create", "--name", "a", "--max-queued", "-1"], id="negative"),
        pytest.param(["create", "--name", "a", "--max-queued", "many"], id="no number"),
        pytest.param(["create", "--name", "a", "--max-running", str(2**31)], id="too large"),
        pytest.param(["create", "--name", "a", "--max-storage", "50XB"], id="no size"),
    ],
)
def test_refused(run: Run, words: list[str]) -> None:
    assert run(*words).exit_code == 2
    assert keys_or_none() == {}


def keys_or_none() -> dict[str, store.ApiKey]:
    return keys() if Settings().data_dir.exists() else {}


@pytest.mark.parametrize("command", ["revoke", "limits"])
def test_unknown_ids(run: Run, command: str) -> None:
    result = run(command, "rs-0000000000000000")
    assert result.exit_code == 1
    assert "no key has the id" in result.stderr
