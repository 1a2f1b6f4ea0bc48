"""The gateway with a certificate: it speaks HTTPS by itself, and stops as fast as without."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance.gateway import Gateway, running
from tests.conformance.tls import make_certificates


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    folder = tmp_path / "data"
    folder.mkdir()
    with running(folder, make_certificates(tmp_path)) as gateway:
        yield gateway


def test_only_https(gateway: Gateway) -> None:
    with gateway.http() as http:
        assert http.get("/ready").status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(gateway.url.replace("https", "http") + "/ready", trust_env=False)


def test_idle_connections_do_not_hold_it_up(gateway: Gateway) -> None:
    with gateway.http() as http:
        http.get("/ready")
        started = time.monotonic()
        gateway.stop()
        assert time.monotonic() - started < 5, "a half of the grace"
