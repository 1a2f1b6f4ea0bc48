"""Both stores, and a clock that tests can move."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from app.storage.base import Storage
from app.storage.local import LocalStorage
from app.storage.s3 import S3Account, S3Storage
from app.storage.signing import UrlSigner

PUBLIC_URL = "http://gateway.test:8000"
EXPIRY_S = 3600


@dataclass
class Clock:
    """Seconds, moved by hand."""

    now: float = field(default=1_800_000_000.0)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> UrlSigner:
    return UrlSigner(b"k" * 32, PUBLIC_URL, now=clock)


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_account(s3_endpoint: str) -> S3Account:
    """A bucket of its own for every test."""
    return S3Account(
        bucket=f"bucket-{uuid.uuid4().hex}",
        endpoint_url=s3_endpoint,
        region="us-east-1",
        access_key_id="test-access-key",
        secret_access_key="test-secret-key",
    )


@pytest.fixture
def local(tmp_path: Path, signer: UrlSigner) -> LocalStorage:
    return LocalStorage(tmp_path / "store", signer, url_expiry_s=EXPIRY_S)


@pytest.fixture
def s3(s3_account: S3Account, signer: UrlSigner) -> S3Storage:
    storage = S3Storage(s3_account, signer, url_expiry_s=EXPIRY_S, patience_s=0)
    storage.prepare()
    return storage


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    return request.getfixturevalue(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    """Makes a file of these bytes."""

    def make(content: bytes) -> Path:
        path = tmp_path / f"source-{uuid.uuid4().hex}"
        path.write_bytes(content)
        return path

    return make
