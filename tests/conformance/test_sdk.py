"""The `fal` SDK, which is another client than `fal-client`: C44."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conformance.clients import HERE, Python
from tests.conformance.conftest import needs
from tests.conformance.gateway import ALICE, APP, T2V, VALID, Worker
from tests.conformance.wire import Hop

SDK = "fal==1.83.0"
INSTALL_LIMIT_S = 300

pytestmark = pytest.mark.timeout(INSTALL_LIMIT_S + 60)


@pytest.fixture(scope="session")
def sdk(pytestconfig: pytest.Config) -> Path:
    """A folder with the SDK and what it needs: 130 MB in 20 s, kept in pytest's cache.

    Beside this environment, not in it: it brings versions of its own of what is used here.
    """
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("fal-sdk-" + SDK.rpartition("=")[2])
    whole = folder / "whole"
    if whole.exists():
        return folder
    install = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "-qq",
            "--no-compile",
            "--upgrade",
            "--target",
            folder,
            SDK,
        ],
        capture_output=True,
        text=True,
        timeout=INSTALL_LIMIT_S,
        check=False,
    )
    if install.returncode:
        needs(f"{SDK}, and pip said: {install.stderr[-500:]}")
    whole.touch()
    return folder


def test_c44_sdk(counted_python: Python, hop: Hop, sdk: Path, worker: Worker) -> None:
    client = counted_python.run_file(
        HERE / "sdk_client.py",
        """
        handle = apps.submit(given.app, given.body)
        tell(handle.request_id)
        for event in handle.iter_events(logs=True):
            tell(event)
        tell(handle.get())
        """,
        key=ALICE,
        flags=("-S",),
        packages=str(sdk),
        app=T2V,
        body=VALID,
    )
    request_id = client.told()
    assert client.told()["is"] == "Queued"
    job = worker.run(request_id)
    job.say("a line")
    while (event := client.told())["is"] != "InProgress" or "a line" not in str(event["logs"]):
        pass
    job.complete()
    assert client.end()[-1]["lora_file"]["file_name"] == "lora.safetensors"

    polls = hop.called("GET", rf"^/{APP}/requests/{request_id}/status/\?logs=")
    assert polls, "with a trailing slash"
    # Two at the end: `iter_events` ends at the first, `get` asks once more.
    *waiting, last, again = [call.status for call in polls]
    assert set(waiting) == {202}
    assert (last, again) == (200, 200)
    (result,) = hop.called("GET", rf"^/{APP}/requests/{request_id}/$")
    assert result.status == 200
    assert not [call for call in hop.calls if 300 <= call.status < 400]


def test_c44_202_until_done(s: httpx.Client, worker: Worker) -> None:
    """The same by raw HTTP, at each step."""
    request_id = s.post(f"/{T2V}", json=VALID).json()["request_id"]
    status = f"/{APP}/requests/{request_id}/status/?logs=1"
    assert s.get(status).status_code == 202
    job = worker.run(request_id)
    assert s.get(status).status_code == 202
    job.complete()
    assert s.get(status).status_code == 200
    assert s.get(f"/{APP}/requests/{request_id}/").status_code == 200
