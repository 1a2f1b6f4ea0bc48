"""A Chromium for each module, and one filled gateway for the whole folder."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from app.storage import make_storage
from tests.app.live import Live, live
from tests.conformance.conftest import INSTALL_LIMIT_S, needs
from tests.console.browser import Watched, axe_source, chromium, launched
from tests.console.seed import Seed

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.service)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Playwright keeps an event loop running in this thread: it must be gone when tests of other
    modules begin."""
    with launched(chromium()) as browser:
        yield browser


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, as package-lock.json has it."""
    if shutil.which("npm") is None:
        needs("npm, for axe-core")
    folder = tmp_path_factory.mktemp("axe")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    install = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=INSTALL_LIMIT_S,
        check=False,
    )
    if install.returncode:
        needs(f"the packages of package-lock.json, and npm said: {install.stderr[-500:]}")
    return axe_source(folder)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """In single-user mode, without workers."""
    with live(tmp_path_factory.mktemp("console")) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def seed(gateway: Live, tmp_path_factory: pytest.TempPathFactory) -> Seed:
    """Requests in every state. Tests change none of them."""
    seed = Seed(gateway.database, make_storage(gateway.settings))
    seed.folder = tmp_path_factory.mktemp("seed")
    return seed.all()


@pytest.fixture(scope="module")
def _watched(browser: Browser, gateway: Live) -> Iterator[Watched]:
    watched = Watched(browser, gateway.settings.public_url)
    yield watched
    watched.context.close()


@pytest.fixture
def watched(_watched: Watched) -> Iterator[Watched]:
    """Nothing goes wrong on any page, and no other host is asked. One page for a whole module."""
    yield _watched
    _watched.context.unroute_all()
    _watched.check()
