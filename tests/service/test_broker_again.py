"""`reelsmith up` and the broker that it started."""

import shutil
from pathlib import Path

import pytest
import redis

from app.broker import start_embedded
from app.dev import NotStarted, Service
from app.settings import Settings

pytestmark = pytest.mark.service


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server on PATH")
def test_a_broker_that_died_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    service = Service(Settings(data_dir=tmp_path), said.append)
    service.broker = broker = start_embedded(None, tmp_path, "redis-server")
    try:
        assert broker.process is not None
        assert broker.redis_url is not None
        service.watch()
        assert said == []
        broker.process.kill()
        broker.process.wait()
        service.watch()
        assert said == ["the broker ended; starting it again"]
        retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 300)
        url = broker.redis_url.replace("redis+socket://", "unix://")
        client = redis.Redis.from_url(url, retry=retry)
        assert client.ping()
        client.close()
        service.watch()
        assert len(said) == 1
    finally:
        service.stop()


def test_a_broker_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = Settings(data_dir=tmp_path, port=1 << 15, broker="redis-server")
    with pytest.raises(NotStarted, match="REELSMITH_BROKER is redis-server, which is not"):
        Service(settings, print).start()
