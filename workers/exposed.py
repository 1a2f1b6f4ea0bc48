"""A worker's metrics, on ``REELSMITH_METRICS_PORT``, over the death of its children.

The task runs in a child of the worker, which a crash or the kernel may end. So counts are kept in
files of a folder (prometheus_client's multiprocess mode) that the main process reads and serves.
"""

import os
import shutil
from pathlib import Path
from typing import Final

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client looks for it once, when it is imported."""
_PORT: Final = "REELSMITH_METRICS_PORT"


def keep_counts_in_files() -> None:
    """Before anything counts. Counts of an earlier worker at the same port are dropped."""
    port = os.environ.get(_PORT)
    if not port or _FOLDER in os.environ:
        return
    folder = Path(os.environ.get("REELSMITH_DATA_DIR", "data")).resolve() / "metrics" / port
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.environ[_FOLDER] = str(folder)


def serve(host: str, port: int) -> None:
    """In a thread of the main process, until it ends."""
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    start_http_server(port, host, registry)
