"""T9 to T13, T17 to T19: what is around a job: other jobs, receivers, the decoder's fence."""

import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.db.engine import Database
from app.fetch import FetchPolicy
from app.webhooks import sender as sender_module
from app.webhooks.deliveries import Outcome
from app.webhooks.message import signature_headers
from app.webhooks.sender import Sender
from preprocessing.pool import Pool
from tests.app.asking import changed
from tests.app.conftest import Gateway, running
from tests.app.fetch.server import answer, scripted_server
from tests.app.webhooks.receiver import Answer, endless_body, receiving, status, trickle
from tests.app.webhooks.test_samples import sample
from tests.conformance.tls import make_certificates
from tests.hostile.costs import MEBIBYTE
from tests.hostile.fenced import escape
from tests.hostile.gateway import ALICE, BOB
from tests.hostile.test_zips import PNG, png
from tests.preprocessing.zips import named, zip_of
from workers.children import ChildProcess
from workers.runtime import Runtime
from workers.stages import prepare_next

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-4f2a9c0b71"
"""Stands in what Alice trains with, and must be nowhere in what Bob gets."""


@pytest.fixture(scope="module")
def workshop(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path
) -> Iterator[tuple[Gateway, Runtime]]:
    """A gateway with two tenants, and a worker's runtime beside it, both in this process."""
    folder = tmp_path_factory.mktemp("workshop")
    with running(folder, migrated_sqlite, api_keys=f"{ALICE},{BOB}", broker="files") as gateway:
        yield gateway, Runtime(gateway.settings)


def check_of(gateway: Gateway, key: str, archive: bytes, **fields: Any) -> dict[str, Any]:
    """A check of ``archive`` by the tenant with this key, submitted."""
    header = {"authorization": f"Key {key}"}
    urls = gateway.client.post(
        "/storage/upload/initiate", json={"file_name": "a.zip"}, headers=header
    ).json()
    assert gateway.client.put(urls["upload_url"], content=archive).status_code == 200
    body = changed("t2v", {"training_data_url": urls["file_url"], "validation": [], **fields})
    reply = gateway.client.post("/t2v/check", json=body, headers=header)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def result_of(gateway: Gateway, key: str, request: dict[str, Any]) -> Any:
    header = {"authorization": f"Key {key}"}
    return gateway.client.get(request["response_url"], headers=header)


@pytest.fixture(scope="module")
def jobs(
    workshop: tuple[Gateway, Runtime], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Alice's check, then Bob's, then one of Bob's that fails, by one worker."""
    gateway, runtime = workshop
    folder = tmp_path_factory.mktemp("archives")
    first = zip_of(
        folder / "a.zip", {f"{CANARY}.png": png(48, 48), f"{CANARY}.txt": CANARY.encode()}
    )
    second = zip_of(folder / "b.zip", {"b.png": PNG, "b.txt": b"of Bob"})
    alices = check_of(gateway, ALICE, first.read_bytes(), debug_dataset=True)
    bobs = check_of(gateway, BOB, second.read_bytes(), debug_dataset=True)
    failing = check_of(gateway, BOB, named("../../x.mp4"))
    left = []
    for _ in range(3):
        assert prepare_next(runtime)
        left.append(sorted(path.name for path in runtime.work_root.iterdir()))
    return {"alice": alices, "bob": bobs, "failing": failing, "left": left}


def stored(runtime: Runtime, prefix: str) -> bytes:
    keys = runtime.storage.list_keys(prefix)
    return b"".join(b"".join(runtime.storage.open_range(key)) for key in keys)


def prefix_of(database: Database, request: dict[str, Any]) -> tuple[str, str]:
    """Where a request's own files are, and its prepared dataset."""
    from tests.app.conftest import row

    found = row(database, request["request_id"])
    return found.storage_prefix, str((found.prepared or {})["key"])


def test_T9_nothing_of_one_job_reaches_the_next(
    workshop: tuple[Gateway, Runtime], jobs: dict[str, Any]
) -> None:
    gateway, runtime = workshop
    assert jobs["left"] == [[], [], []], "no folder outlives its attempt"
    alice = [stored(runtime, prefix) for prefix in prefix_of(gateway.database, jobs["alice"])]
    assert any(CANARY.encode() in content for content in alice), "the canary is there to be found"
    for prefix in prefix_of(gateway.database, jobs["bob"]):
        content = stored(runtime, prefix)
        assert content
        assert CANARY.encode() not in content
    header = {"authorization": f"Key {BOB}"}
    for tail in ("", "/report", "/events", "/status?logs=1"):
        reply = gateway.client.get(jobs["bob"]["response_url"] + tail, headers=header)
        assert reply.status_code == 200
        assert CANARY not in reply.text


def test_T10_a_debug_archive_holds_ones_own(
    workshop: tuple[Gateway, Runtime], jobs: dict[str, Any], tmp_path: Path
) -> None:
    gateway, _ = workshop
    url = result_of(gateway, BOB, jobs["bob"]).json()["debug_dataset"]["url"]
    path = tmp_path / "debug.zip"
    path.write_bytes(gateway.client.get(url).content)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        contents = b"".join(archive.read(name) for name in names)
    assert names
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) for name in names)
    assert not any(".." in name or name.startswith("/") for name in names)
    assert CANARY.encode() not in contents
    assert str(gateway.settings.data_dir).encode() not in contents
    pictures = [name for name in names if name.endswith(".png")]
    assert len(pictures) == 1, "Bob had one image"


def test_T11_a_failed_job_tells_nothing_of_the_machine(
    workshop: tuple[Gateway, Runtime], jobs: dict[str, Any]
) -> None:
    gateway, _ = workshop
    reply = result_of(gateway, BOB, jobs["failing"])
    assert reply.status_code == 422
    assert reply.headers["x-fal-billable-units"] == "0"
    header = {"authorization": f"Key {BOB}"}
    texts = [reply.text]
    for tail in ("/report", "/events", "/status?logs=1"):
        texts.append(
            gateway.client.get(jobs["failing"]["response_url"] + tail, headers=header).text
        )
    for text in texts:
        for secret in (str(gateway.settings.data_dir), "Traceback", ".py", "site-packages", BOB):
            assert secret not in text


KEY = Ed25519PrivateKey.generate()
BODY = b'{"request_id": "r", "status": "OK"}'


def genuine() -> Callable[[dict[str, str], bytes], bool]:
    """The check that the page of webhooks prints for receivers."""
    import base64

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    raw = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    space: dict[str, Any] = {}
    exec(compile(sample("python"), "webhooks.md", "exec"), space)
    keys = [{"x": base64.urlsafe_b64encode(raw).decode()}]
    return lambda headers, body: bool(space["is_genuine"](headers, body, keys))


def signed(age_s: int = 0, key: Ed25519PrivateKey = KEY, **changes: str) -> dict[str, str]:
    made = signature_headers(key, "r", "local", int(time.time()) - age_s, BODY)
    headers = {name.lower(): value for name, value in made.items()}
    return {**headers, **{f"x-fal-webhook-{name}": value for name, value in changes.items()}}


WEBHOOKS: dict[str, tuple[Callable[[], dict[str, str]], bytes, bool]] = {
    "T12-as-sent": (signed, BODY, True),
    "T12-a-little-late": (lambda: signed(age_s=200), BODY, True),
    "T12-old": (lambda: signed(age_s=400), BODY, False),
    "T12-from-the-future": (lambda: signed(age_s=-400), BODY, False),
    "T12-replayed-with-a-new-time": (
        lambda: {**signed(age_s=400), "x-fal-webhook-timestamp": str(int(time.time()))},
        BODY,
        False,
    ),
    "T12-tampered-body": (signed, BODY.replace(b"OK", b"NO"), False),
    "T12-longer-body": (signed, BODY + b" ", False),
    "T12-another-id": (lambda: {**signed(), "x-fal-webhook-request-id": "s"}, BODY, False),
    "T12-another-user": (lambda: {**signed(), "x-fal-webhook-user-id": "bob"}, BODY, False),
    "T12-another-key": (lambda: signed(key=Ed25519PrivateKey.generate()), BODY, False),
    "T12-no-signature": (lambda: {**signed(), "x-fal-webhook-signature": ""}, BODY, False),
    "T12-no-hex": (lambda: {**signed(), "x-fal-webhook-signature": "zz"}, BODY, False),
}


@pytest.mark.parametrize("case", WEBHOOKS)
def test_webhook_as_received(case: str) -> None:
    headers, body, believed = WEBHOOKS[case]
    assert genuine()(headers(), body) is believed


def gone(handler: Any) -> None:
    status(410)(handler)


RECEIVERS: dict[str, tuple[Answer, bool, str | None]] = {
    # id: (answer, final, part of the error; None: delivered)
    "T13-redirect-inside": (
        status(302, ("Location", "http://127.0.0.1:1/")),
        True,
        "webhooks follow none",
    ),
    "T13-gone": (gone, True, "410"),
    "T13-endless-body": (endless_body, False, None),
    "T13-one-byte-at-a-time": (trickle, False, "no answer within"),
    "T13-server-error": (status(500), False, "500"),
}


def posted(url: str, policy: FetchPolicy, tls: ssl.SSLContext | None = None) -> Outcome:
    async def run() -> Outcome:
        sender = Sender(policy, tls)
        try:
            return await sender.post(url, b"{}", {}, 2.0)
        finally:
            sender.close()

    return asyncio.run(run())


@pytest.mark.parametrize("case", RECEIVERS)
def test_webhook_receiver(case: str) -> None:
    script, final, error = RECEIVERS[case]
    with receiving(script) as receiver, scripted_server() as inside:
        inside.scripts = [answer(b"from inside")]
        policy = FetchPolicy.allowing(["127.0.0.1"], [receiver.port, inside.port, 1])
        outcome = posted(receiver.url, policy)
        assert inside.heads == []
        sent = receiver.sent
    assert outcome.final is final
    assert (outcome.error is None) if error is None else (error in str(outcome.error))
    assert sent < 16 * MEBIBYTE, "what the kernel holds, no more is taken"
    assert sender_module.MAX_REPLY_BYTES <= 64 * 1024


def test_T13_certificate_of_another_name(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    with receiving(status(200), tls=certificates.server()) as receiver:
        from ipaddress import ip_address

        policy = FetchPolicy.allowing(
            ["other.test"], [receiver.port], lambda host, port: [ip_address("127.0.0.1")]
        )
        outcome = posted(f"https://other.test:{receiver.port}/", policy, certificates.client())
    assert outcome.error == "the receiver's certificate is not valid"
    assert receiver.received == []


@pytest.fixture(scope="module")
def escaped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What came of every way out, tried inside a child of the preparation's pool."""
    folder, other = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("other")
    (other / "secret").write_text(CANARY)
    with scripted_server() as inside:
        inside.scripts = [answer(b"from inside")]
        with Pool(1, folder) as pool:
            task = ("clip.mp4", folder, other, inside.port, os.getpid())
            found = dict(pool.run(escape, [task]))[0]
        assert isinstance(found, dict)
        assert inside.heads == []
    return found


def granted(folder: Path) -> Any:
    """The fences of this machine, told by a process that put them up."""
    code = (
        "import dataclasses, json, pathlib, sys\n"
        "from preprocessing.confinement import confine\n"
        "print(json.dumps(dataclasses.asdict(confine(pathlib.Path(sys.argv[1])))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={"PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


FENCED = {
    # way out -> (id, fences any of which closes it, errors)
    "tcp": ("T17-tcp", ("network", "tcp"), ("OSError", "PermissionError")),
    "udp": ("T17-udp", ("network",), ("OSError", "PermissionError")),
    "passwd": ("T17-passwd", ("files",), ("PermissionError",)),
    "read another job": ("T17-read-another-job", ("files",), ("PermissionError",)),
    "list another job": ("T17-list-another-job", ("files",), ("PermissionError",)),
    "write another job": ("T17-write-another-job", ("files",), ("PermissionError",)),
    "link another job": ("T17-link-another-job", ("files",), ("PermissionError", "OSError")),
    "environment of the parent": (
        "T17-environment-of-the-parent",
        ("files",),
        ("PermissionError",),
    ),
    "run a program": ("T17-run-a-program", ("files",), ("PermissionError",)),
}


@pytest.mark.parametrize("way", [pytest.param(way, id=FENCED[way][0]) for way in FENCED])
def test_ways_out(escaped: dict[str, str], tmp_path: Path, way: str) -> None:
    """Closed wherever the kernel has the fence; where it has none, the layers above must do
    (SECURITY.md says which)."""
    fences = granted(tmp_path)
    _, closing, errors = FENCED[way]
    if any(fences[fence] for fence in closing):
        assert escaped[way] in errors
    else:
        assert escaped[way] in ("ok", *errors)


def test_T17_its_own_work_goes_on(escaped: dict[str, str]) -> None:
    assert escaped["own file"] == escaped["libraries"] == "ok"


def test_T18_no_secret_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the worker's child, now and in what the kernel keeps of its start."""
    for name in ("REELSMITH_SECRET_KEY", "REELSMITH_S3_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY",
                 "HF_TOKEN", "REELSMITH_DATABASE_URL", "REELSMITH_API_KEYS"):  # fmt: skip
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = tmp_path / "seen.json"
    child = ChildProcess("tests.hostile.environment", [str(out)], tmp_path)
    assert child.process.wait(60) == 0, child.stderr_tail()
    seen = json.loads(out.read_text())
    assert CANARY not in out.read_text()
    assert not [name for name in seen["now"] if "KEY" in name or "TOKEN" in name or "URL" in name]
    assert "PATH" in seen["now"]


def test_T19_bandit_is_part_of_lint() -> None:
    """And has no blanket exceptions; pip-audit needs a network: SECURITY.md has its command."""
    makefile = (ROOT / "Makefile").read_text()
    lint = makefile.partition("\nlint:")[2].partition("\n\n")[0]
    assert "bandit" in lint
    assert "# nosec\n" not in "".join(
        path.read_text()
        for part in ("app", "workers", "trainer", "preprocessing")
        for path in (ROOT / part).rglob("*.py")
    )
    assert "pip-audit" in (ROOT / "SECURITY.md").read_text()
