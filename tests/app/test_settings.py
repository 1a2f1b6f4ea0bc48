"""Settings: what is refused at start, and why."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import Settings, is_loopback


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

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
    ({"lease_s": 20, "heartbeat_s": 10}, "lease_s"),
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
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: str(value)[:40])
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(**values)


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
