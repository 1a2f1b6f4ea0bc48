"""The readiness probe's file, shared by gateways that start at once."""

import threading
from pathlib import Path
from typing import Any

from app.health import PROBE_CONTENT, PROBE_FILE, _put


class Store:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def put_file(self, key: str, path: Path) -> None:
        self.given.append(path.read_bytes())


def put(probe: Path) -> list[bytes]:
    store: Any = Store()
    _put(store, probe)
    return list(store.given)


def test_nobody_stores_another_gateways_empty_file(tmp_path: Path) -> None:
    """It is about to write, or died before it did."""
    probe = tmp_path / PROBE_FILE
    probe.touch()
    assert put(probe) == [PROBE_CONTENT]


def test_gateways_that_start_at_once(tmp_path: Path) -> None:
    """Each stores a whole file, whoever makes it."""
    given: list[bytes] = []
    for number in range(200):
        probe = tmp_path / str(number) / PROBE_FILE
        ready = threading.Barrier(2)

        def gateway(probe: Path = probe, ready: threading.Barrier = ready) -> None:
            ready.wait(10)
            given.extend(put(probe))

        threads = [threading.Thread(target=gateway) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert given == [PROBE_CONTENT] * 400
