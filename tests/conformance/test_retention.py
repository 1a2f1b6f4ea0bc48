"""How long results are kept: C43."""

import contextlib
import time
from pathlib import Path

from tests.conformance.gateway import APP, Worker, running, submit
from tests.conformance.tls import Certificates

DAY_S = 24 * 3600.0
RETENTION_S = 30 * DAY_S
SWEPT_WITHIN_S = 30.0


def test_c43_retention(certificates: Certificates, tmp_path: Path) -> None:
    """Time passes by moving the request into the past; a gateway sweeps when it starts."""
    with (
        running(tmp_path, certificates, REELSMITH_RETENTION_S=str(RETENTION_S)) as gateway,
        contextlib.closing(Worker(gateway)) as worker,
        gateway.http() as http,
    ):
        request = submit(http)
        path = f"/{APP}/requests/{request['request_id']}"
        worker.run(request["request_id"]).complete()

        worker.later(request["request_id"], DAY_S)
        gateway.stop()
        gateway.start()
        result = http.get(path)
        assert result.status_code == 200
        lora = result.json()["lora_file"]
        file = http.get(lora["url"])
        assert file.status_code == 200
        assert len(file.content) == lora["file_size"]

        worker.later(request["request_id"], RETENTION_S + DAY_S)
        gateway.stop()
        gateway.start()
        deadline = time.monotonic() + SWEPT_WITHIN_S
        while (reply := http.get(path)).status_code == 200:
            assert time.monotonic() < deadline, "it is still there"
            time.sleep(0.2)
        assert reply.status_code == 404
        assert http.get(f"{path}/status").status_code == 404
        assert http.get(f"{path}/status").json()["status"] == "NOT_FOUND"
        assert http.put(f"{path}/cancel").status_code == 404
        assert http.get(lora["url"]).status_code == 404
