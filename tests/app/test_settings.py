"""Settings: what is refused at start, and why."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from app.cli import main
from app.settings import Settings, is_loopback


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("REELSMITH_")]:
        monkeypatch.delenv(name)


def test_defaults_are_a_service_for_one_on_this_machine() -> None:
    settings = Settings()
    assert settings.single_user
    assert (settings.host, settings.model) == ("127.0.0.1", "tiny")
    assert settings.public_url == "http://127.0.0.1:8000"
    assert settings.database_url == f"sqlite:///{Path('data').resolve() / 'reelsmith.db'}"


def test_derived_from_others(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=9001)
    assert settings.public_url == "http://127.0.0.1:9001"
    assert settings.database_url == f"sqlite:///{tmp_path / 'reelsmith.db'}"
    with_tls = Settings(port=9001, tls_cert=Path(__file__), tls_key=Path(__file__))
    assert with_tls.public_url == "https://127.0.0.1:9001"


@pytest.mark.parametrize(
    ("folder", "labels", "found"),
    [
        ("", "nsfw", (None, ("nsfw",))),
        ("/models/safe", "gore, nsfw", (Path("/models/safe"), ("gore", "nsfw"))),
    ],
)
def test_the_safety_classifier(
    monkeypatch: pytest.MonkeyPatch, folder: str, labels: str, found: object
) -> None:
    """Nothing set and an empty variable, as compose files pass it on, mean none."""
    assert (Settings().safety_classifier, "nsfw" in Settings().safety_labels) == (None, True)
    monkeypatch.setenv("REELSMITH_SAFETY_CLASSIFIER", folder)
    monkeypatch.setenv("REELSMITH_SAFETY_LABELS", labels)
    assert (Settings().safety_classifier, Settings().safety_labels) == found


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("k3y-one", ["k3y-one"]),
        ("k3y-one, k3y:two,", ["k3y-one", "k3y:two"]),
        ('["k3y-one", "k3y,b"]', ["k3y-one", "k3y,b"]),
    ],
)
def test_keys_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, keys: list[str]
) -> None:
    monkeypatch.setenv("REELSMITH_API_KEYS", text)
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == keys
    assert not any(key in repr(settings) for key in keys)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"lease_s": 20, "heartbeat_s": 10}, "LEASE_S"),
    ({"s3_access_key_id": "a", "s3_bucket": "b"}, "go together"),
    ({"s3_endpoint": "http://s3"}, "REELSMITH_S3_BUCKET"),
    ({"database_url": "mysql://u@h/d"}, "mysql"),
    ({"public_url": "example.com"}, "public_url"),
    ({"tls_cert": __file__}, "go together"),
    ({"tls_cert": "/none.pem", "tls_key": __file__}, "tls_cert"),
    ({"public_url": "ftp://example.com"}, "public_url"),
    ({"api_keys": "a b"}, "header"),
    ({"secret_key": "short"}, "32"),
    ({"attempts_limit": 0}, "attempts_limit"),
    ({"port": 0}, "port"),
    ({"redis_url": "localhost"}, "redis://127.0.0.1:6379/0"),
    ({"redis_url": "https://h:6379"}, "redis://127.0.0.1:6379/0"),
    ({"fetch_allow_private_hosts": "10.0.0.0/99"}, "10.0.0.0/99"),
    ({"webhook_allow_private_hosts": "10.0.0.1/8"}, "host bits"),
    ({"api_keys": '["a"'}, "JSON list"),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: str(value)[:40])
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(**values)


LINES: list[tuple[dict[str, str], list[str]]] = [
    ({"PORT": "abc"}, ["REELSMITH_PORT: Input should be a valid integer, unable to parse"]),
    ({"TLS_CERT": __file__}, ["REELSMITH_TLS_CERT and REELSMITH_TLS_KEY go together"]),
    ({"TLS_CERT": __file__, "TLS_KEY": __file__}, ["REELSMITH_TLS_CERT, REELSMITH_TLS_KEY: no"]),
    ({"REDIS_URL": "localhost"}, ["REELSMITH_REDIS_URL: this is no URL of a Redis"]),
    ({"DATABASE_URL": "mysql://h/d"}, ["REELSMITH_DATABASE_URL: 'mysql' is not supported"]),
    ({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, ["REELSMITH_DATABASE_URL: connection"]),
    ({"DATA_DIR": __file__}, [f"{__file__}: File exists"]),
    ({"PORT": "0", "RETENTION_S": "30d"}, ["REELSMITH_PORT: ", "REELSMITH_RETENTION_S: "]),
]


@pytest.mark.parametrize(("given", "begins"), LINES, ids=lambda value: str(value)[:40])
def test_a_line_for_each_at_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str], begins: list[str]
) -> None:
    monkeypatch.setenv("REELSMITH_DATA_DIR", str(tmp_path))
    for name, value in given.items():
        monkeypatch.setenv(f"REELSMITH_{name}", value)
    done = CliRunner().invoke(main, ["serve"])
    assert done.exit_code in (2, 3), done.output
    lines = done.stderr.splitlines()
    assert len(lines) == len(begins), done.stderr
    for line, begin in zip(lines, begins, strict=True):
        assert line.startswith(begin)


@pytest.mark.parametrize("revision", ["9999", "nonsense"])
def test_no_such_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, revision: str) -> None:
    monkeypatch.setenv("REELSMITH_DATA_DIR", str(tmp_path / "new"))
    assert CliRunner().invoke(main, ["migrate"]).exit_code == 0
    done = CliRunner().invoke(main, ["migrate", "--to", revision])
    assert done.exit_code == 2
    assert done.stderr.startswith("the database can't be migrated: ")


def test_a_worker_says_it_in_a_line(tmp_path: Path) -> None:
    env = os.environ | {"REELSMITH_DATA_DIR": str(tmp_path), "REELSMITH_PORT": "abc"}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers.celery_app", "worker"],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("REELSMITH_PORT: Input should be")
    assert "Traceback" not in done.stderr


def test_a_refusal_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELSMITH_API_KEYS", "s3cret-key")
    with pytest.raises(ValidationError) as caught:
        Settings(lease_s=1)
    assert "s3cret-key" not in str(caught.value)


def test_others_than_one_user(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Settings(host="0.0.0.0").single_user  # it starts with a key in the database only
    monkeypatch.setenv("REELSMITH_API_KEYS", "one")
    assert not Settings().single_user


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


def test_every_setting_is_on_its_page() -> None:
    """docs/settings.md: one row for each, or for a few that go together."""
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    first_cells = " ".join(line.split("|")[1] for line in page.splitlines() if line[:1] == "|")
    named = {name.lower() for name in re.findall(r"`([A-Z0-9_]+)`", first_cells)}
    assert named == set(Settings.model_fields)
