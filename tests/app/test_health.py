"""The readiness probe's file, shared by gateways that start at once."""

import threading
from pathlib import Path

from app.health import PROBE_CONTENT, PROBE_FILE, PROBE_KEY, _put
from app.storage.local import LocalStorage
from app.storage.signing import UrlSigner
from tests.app.storage.conftest import EXPIRY_S, PUBLIC_URL


def put(probe: Path, root: Path) -> bytes:
    """What a gateway with a store of its own in ``root`` stored."""
    store = LocalStorage(root, UrlSigner(b"k" * 32, PUBLIC_URL), url_expiry_s=EXPIRY_S)
    _put(store, probe)
    return b"".join(store.open_range(PROBE_KEY))


def test_nobody_stores_another_gateways_empty_file(tmp_path: Path) -> None:
    """It is about to write, or died before it did."""
    probe = tmp_path / PROBE_FILE
    probe.touch()
    assert put(probe, tmp_path / "store") == PROBE_CONTENT


def test_gateways_that_start_at_once(tmp_path: Path) -> None:
    """Each stores a whole file, whoever makes it."""
    stored: list[bytes] = []
    for number in range(100):
        folder = tmp_path / str(number)
        ready = threading.Barrier(2)

        def gateway(name: str, folder: Path = folder, ready: threading.Barrier = ready) -> None:
            ready.wait(10)
            stored.append(put(folder / PROBE_FILE, folder / name))

        threads = [threading.Thread(target=gateway, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert stored == [PROBE_CONTENT] * 200
