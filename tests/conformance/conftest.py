"""One gateway, proxy and set of clients for the whole folder; an empty queue for every test."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance.clients import HERE, JavaScript, Python
from tests.conformance.gateway import Gateway, Worker, running
from tests.conformance.receiver import Receiver
from tests.conformance.tls import Certificates, make_certificates
from tests.conformance.wire import ConnectProxy, Hop, wire

NODE_AT_LEAST = 20
INSTALL_LIMIT_S = 300
RUN_WAIT_S = 5
"""How long a synchronous run waits here: C47 waits for its end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.service)


def needs(what: str) -> None:
    """In CI a missing tool is a failure, on other machines a skip."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must have {what} (see .ci/run)")
    pytest.skip(f"needs {what}")


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def receiver() -> Iterator[Receiver]:
    """Of webhooks, on this machine."""
    receiver = Receiver()
    yield receiver
    receiver.close()


def webhooks_to(receiver: Receiver) -> dict[str, str]:
    """The settings that permit a receiver on a private address."""
    return {
        "REELSMITH_WEBHOOK_ALLOW_PRIVATE_HOSTS": "127.0.0.1",
        "REELSMITH_WEBHOOK_EXTRA_PORTS": str(receiver.port),
    }


@pytest.fixture(scope="session")
def gateway(
    certificates: Certificates, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    env = {**webhooks_to(receiver), "REELSMITH_RUN_WAIT_S": str(RUN_WAIT_S)}
    with running(tmp_path_factory.mktemp("gateway"), certificates, **env) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def _wire(gateway: Gateway, certificates: Certificates) -> Iterator[tuple[ConnectProxy, Hop, str]]:
    with wire(certificates, gateway.settings.port) as parts:
        yield parts
        assert parts[0].refused == [], "a client asked for a host that is none of ours"


@pytest.fixture(scope="session")
def _session_worker(gateway: Gateway) -> Iterator[Worker]:
    worker = Worker(gateway)
    yield worker
    worker.close()


@pytest.fixture
def worker(_session_worker: Worker) -> Iterator[Worker]:
    yield _session_worker
    _session_worker.clear()


@pytest.fixture
def hop(_wire: tuple[ConnectProxy, Hop, str]) -> Iterator[Hop]:
    """Counts calls and makes faults, for the clients `counted_python` and `counted_js`."""
    yield _wire[1]
    _wire[1].reset()


@pytest.fixture
def s(gateway: Gateway) -> Iterator[httpx.Client]:
    """Raw HTTP with a key."""
    with gateway.http() as http:
        yield http


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def python(_wire: tuple[ConnectProxy, Hop, str], certificates: Certificates, home: Path) -> Python:
    """`fal_client`, straight to the gateway."""
    return Python({"HTTPS_PROXY": _wire[0].url}, certificates.ca, home)


@pytest.fixture
def counted_python(
    _wire: tuple[ConnectProxy, Hop, str], hop: Hop, certificates: Certificates, home: Path
) -> Python:
    """`fal_client` through the hop."""
    return Python({"HTTPS_PROXY": _wire[2]}, certificates.ca, home)


@pytest.fixture(scope="session")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packages of package-lock.json are installed."""
    folder = tmp_path_factory.mktemp("node")
    if shutil.which("node") is None or shutil.which("npm") is None:
        needs("node and npm")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.strip().lstrip("v").split(".")[0]) < NODE_AT_LEAST:
        needs(f"Node {NODE_AT_LEAST} or newer, not {version.stdout.strip()}")
    for name in ("package.json", "package-lock.json", "js_client.mjs"):
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
    return folder


@pytest.fixture(scope="session")
def js(node_folder: Path, certificates: Certificates, gateway: Gateway) -> JavaScript:
    """`@fal-ai/client`, straight to the gateway."""
    return JavaScript(node_folder, certificates.ca, gateway.url)


@pytest.fixture
def counted_js(node_folder: Path, certificates: Certificates, hop: Hop) -> JavaScript:
    """`@fal-ai/client` through the hop."""
    return JavaScript(node_folder, certificates.ca, f"https://localhost:{hop.port}")
