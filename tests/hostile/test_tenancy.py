"""T1 to T8, T11, T20: what one tenant can do to another, at the real gateway process."""

import asyncio
import json
import random
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.requests import Request as HttpRequest

from app.auth import Authenticator
from app.db.engine import AsyncDatabase
from app.db.models import Request, Stage
from app.errors import NotAuthenticated
from app.keys import store
from app.keys.table import FRESH_S
from app.requests import lifecycle
from app.settings import Settings
from app.storage.s3 import S3Account, S3Storage
from app.storage.signing import UrlSigner
from tests.app.asking import changed
from tests.app.conftest import Gateway, running
from tests.app.keys.conftest import Key, make_key, revoke
from tests.app.storage.conftest import s3_account, s3_endpoint
from tests.app.storage.proxy import running_proxy
from tests.app.test_lifecycle import claimed
from tests.hostile.catalogue import as_id
from tests.hostile.gateway import ALICE, BOB, Served, status_of
from tests.hostile.test_api import assert_tells_nothing

__all__ = ["s3_account", "s3_endpoint"]

PATIENCE_S = 60.0
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def stranger(served: Served) -> Iterator[httpx.Client]:
    """Without any key."""
    url = served.settings.public_url
    with httpx.Client(base_url=url, timeout=60.0, trust_env=False) as client:
        yield client


def as_bob() -> dict[str, str]:
    return {"authorization": f"Key {BOB}"}


REFUSED: dict[str, Any] = {
    "T1-none": [],
    "T1-empty": [("authorization", "")],
    "T1-only-the-scheme": [("authorization", "Bearer")],
    "T1-blank-key": [("authorization", "Key \t.")],
    "T1-another-key": [("authorization", f"Key {ALICE}2")],
    "T1-half-a-key": [("authorization", f"Key {ALICE.partition(':')[0]}")],
    "T1-no-scheme": [("authorization", ALICE)],
    "T1-another-scheme": [("authorization", f"Basic {ALICE}")],
    "T1-wrong-case": [("authorization", f"key {ALICE}")],
    "T1-two-headers": [("authorization", f"Key {ALICE}"), ("authorization", f"Key {ALICE}")],
    "T1-latin-1": [("authorization", b"Key \xff\xfe")],
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_key(stranger: httpx.Client, case: str) -> None:
    reply = stranger.post("/t2v", json=changed("t2v", {}), headers=REFUSED[case])
    assert reply.status_code == 401
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"] == "unauthorized"
    assert "wonderland" not in reply.text


def test_T1_empty_key(served: Served) -> None:
    """Clients' libraries refuse to send it."""
    head = b"POST /t2v HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    for value in (b"Key ", b"Key", b" ", b"Bearer  "):
        answer = served.say(head + b"Authorization: " + value + b"\r\n\r\n{}")
        assert status_of(answer) == 401


def test_T1_key_in_the_query(stranger: httpx.Client) -> None:
    reply = stranger.post("/t2v", params={"key": ALICE, "fal_key": ALICE}, json=changed("t2v", {}))
    assert reply.status_code == 401


@contextmanager
def counting_comparisons() -> Iterator[list[str]]:
    """Every call of `hmac.compare_digest` meanwhile, as the interpreter sees it."""
    calls: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "c_call" and argument.__name__ == "compare_digest":
            calls.append(argument.__name__)

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize(
    ("key", "right"),
    [
        pytest.param(ALICE, True, id="T2-the-first-key"),
        pytest.param(BOB, True, id="T2-the-last-key"),
        pytest.param("x" + ALICE[1:], False, id="T2-wrong-from-the-start"),
        pytest.param(ALICE[:-1] + "x", False, id="T2-wrong-at-the-end"),
        pytest.param("x", False, id="T2-short"),
        pytest.param("x" * 10_000, False, id="T2-long"),
    ],
)
def test_the_same_work_for_every_key(
    tmp_path: Path, migrated_sqlite: Path, key: str, right: bool
) -> None:
    """What takes time does not depend on how much of a key is right: digests of one length are
    compared, all of them, by a function whose time is constant. (What the clock sees is measured
    by `python -m tests.hostile.timing`; a test that asks the clock would fail by chance.)"""
    settings = Settings(data_dir=tmp_path, api_keys=f"{ALICE},{BOB}")
    header = (b"authorization", f"Key {key}".encode())

    async def ask() -> None:
        database = AsyncDatabase(f"sqlite:///{migrated_sqlite}")
        authenticate = Authenticator.of(settings, database)
        request = HttpRequest({"type": "http", "headers": [header]})
        try:
            with counting_comparisons() as calls:
                await authenticate(request)
            assert right
        except NotAuthenticated:
            assert not right
        finally:
            await database.close()
        assert len(calls) == 2

    asyncio.run(ask())


@pytest.fixture
def made_key(served: Served) -> Key:
    """A third tenant's, of the database."""
    database = served.database()
    try:
        return make_key(database)
    finally:
        database.close()


def test_T3_keys_are_stored_nowhere(served: Served, made_key: Key) -> None:
    """Used rightly and wrongly, then looked for in all files: database, its log, the service's."""
    for key in (ALICE, BOB, made_key.text):
        for scheme in ("Key", "Basic"):
            header = {"authorization": f"{scheme} {key}"}
            served.http.post("/t2v", json=changed("t2v", {}), headers=header)
            served.http.get(f"/t2v?key={key}", headers=header)
    files = [path for path in served.settings.data_dir.rglob("*") if path.is_file()]
    assert {"reelsmith.db", "gateway.log"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes()
        for key in (ALICE, BOB, made_key.text):
            assert key.encode() not in content, path


def test_T4_a_revoked_key(served: Served, stranger: httpx.Client, made_key: Key) -> None:
    """It opens for as long as gateways remember it; what it submitted goes on."""
    posted = stranger.post("/t2v", json=changed("t2v", {}), headers=made_key.header)
    assert posted.status_code == 200
    database = served.database()
    revoke(database, made_key)
    ends = time.monotonic() + PATIENCE_S
    status_url = posted.json()["status_url"]
    while stranger.get(status_url, headers=made_key.header).status_code != 401:
        assert time.monotonic() < ends
        time.sleep(0.1)
    assert FRESH_S <= 5
    with database.read() as session:
        row = request_row(session, posted.json()["request_id"])
        assert row.cancel_requested_at is None
    database.close()


@pytest.fixture(scope="module")
def alices(served: Served) -> str:
    """The id of a request of Alice's."""
    reply = served.http.post("/t2v", json=changed("t2v", {}))
    assert reply.status_code == 200
    return str(reply.json()["request_id"])


def routes_of(served: Served) -> list[tuple[str, str]]:
    """(method, path) of every route that names a request, in all three forms."""
    paths = served.http.get("/openapi.json").json()["paths"]
    found = {
        (method.upper(), path)
        for path, methods in paths.items()
        for method in methods
        if "{request_id}" in path
    }
    short = {(method, re.sub(r"^/fal-ai/[^/]+", "/t2v", path)) for method, path in found}
    full = {(m, path.replace("/requests", "/t2v/requests", 1)) for m, path in found}
    return sorted(found | short | full)


def test_T5_another_tenants_request_is_an_unknown_one(
    served: Served, stranger: httpx.Client, alices: str
) -> None:
    """For every verb and route: the same status, body and headers as for an id that nobody has."""
    routes = routes_of(served)
    assert len(routes) >= 18
    for method, path in routes:
        answers = []
        for request_id in (alices, UNKNOWN):
            url = path.replace("{request_id}", request_id)
            reply = stranger.request(method, url, headers=as_bob())
            told = {name for name in reply.headers if name != "date"}
            answers.append((reply.status_code, reply.text.replace(request_id, "the id"), told))
        assert answers[0] == answers[1], (method, path)
        assert answers[0][0] in (404, 405), (method, path)
    mine = served.http.get(f"/t2v/requests/{alices}/status")
    assert mine.json()["status"] == "IN_QUEUE", "and nothing happened to it"


def test_T5_lists_hold_ones_own(stranger: httpx.Client, served: Served, alices: str) -> None:
    listed = stranger.get("/requests", headers=as_bob())
    assert listed.status_code == 200
    assert alices not in listed.text


def test_T6_ids_can_not_be_guessed(served: Served, stranger: httpx.Client, alices: str) -> None:
    database = served.database()
    with database.read() as session:
        ids = set(session.scalars(select(Request.id)))
    database.close()
    assert alices in ids
    assert all(uuid.UUID(id).version == 4 for id in ids), "122 random bits"
    known = {uuid.UUID(id).int for id in ids}
    guess = random.Random()
    assert not any(as_version_4(guess.getrandbits(128)) in known for _ in range(1_000_000))
    for _ in range(50):
        request_id = uuid.UUID(int=as_version_4(guess.getrandbits(128)))
        reply = stranger.get(f"/t2v/requests/{request_id}/status", headers=as_bob())
        assert reply.status_code == 404


def as_version_4(number: int) -> int:
    """With the six bits set that every id of ours has."""
    return number & ~(0xF << 76 | 0x3 << 62) | 4 << 76 | 2 << 62


class TestSignedUrls:
    """T7 and T8: of the gateway's own files, and of S3 behind a proxy that checks signatures."""

    @pytest.fixture
    def uploaded(self, served: Served) -> str:
        """The read URL of a page that Alice has uploaded."""
        named = {"file_name": "page.html", "content_type": "text/html"}
        urls = served.http.post("/storage/upload/initiate", json=named).json()
        sent = served.http.put(
            urls["upload_url"], content=b"<script>", headers={"content-type": "text/html"}
        )
        assert sent.status_code == 200
        return str(urls["file_url"])

    def test_T7_one_object_one_method_one_time(
        self, served: Served, stranger: httpx.Client, uploaded: str
    ) -> None:
        grant = re.search(r"/files/(\d+)-([0-9a-f]{64})/(.+)", uploaded)
        assert grant is not None
        expires, signature, key = grant.groups()
        assert stranger.get(uploaded).status_code == 200
        later = f"/files/{int(expires) + 1}-{signature}/{key}"
        others = {
            "another key": f"/files/{expires}-{signature}/{key}2",
            "a key above": f"/files/{expires}-{signature}/{key.rpartition('/')[0]}",
            "later": later,
            "no signature": f"/files/{expires}-/{key}",
            "upwards": f"/files/{expires}-{signature}/../../reelsmith.db",
            "the folder": "/files/",
        }
        for what, path in others.items():
            assert stranger.get(path).status_code in (403, 404, 405), what
        for method in ("PUT", "POST", "DELETE", "PATCH"):
            assert stranger.request(method, uploaded, content=b"x").status_code in (403, 405)
        signer = UrlSigner(b"k" * 32, served.settings.public_url)
        assert stranger.get(signer.read_url(key, expires_s=60)).status_code == 403, "another secret"

    def test_T7_past_its_time(self) -> None:
        now = 1_800_000_000.0
        signer = UrlSigner(b"k" * 32, "http://a", now=lambda: now)
        url = signer.read_url("uploads/x/a.zip", expires_s=60)
        assert signer.key_of(url) == "uploads/x/a.zip"
        late = UrlSigner(b"k" * 32, "http://a", now=lambda: now + 60)
        assert late.key_of(url) is None

    def test_T7_a_page_is_a_download(self, stranger: httpx.Client, uploaded: str) -> None:
        reply = stranger.get(uploaded)
        assert reply.headers["content-disposition"].startswith("attachment")
        assert reply.headers["content-type"] == "application/octet-stream"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in reply.headers["content-security-policy"]

    def test_T7_presigned_for_one_object_and_method(
        self, s3_account: S3Account, tmp_path: Path
    ) -> None:
        (tmp_path / "a").write_bytes(b"x")
        signer = UrlSigner(b"k" * 32, "http://gateway.test")
        S3Storage(s3_account, signer, url_expiry_s=60, patience_s=0).prepare()
        assert s3_account.endpoint_url is not None
        with running_proxy(s3_account.endpoint_url) as proxy:
            account = S3Account(**{**vars(s3_account), "endpoint_url": proxy.url})
            store_ = S3Storage(account, signer, url_expiry_s=60, patience_s=0)
            for key in ("outputs/1/a.zip", "outputs/2/a.zip"):
                store_.put_file(key, tmp_path / "a")
            url = store_.signed_url("outputs/1/a.zip", file_name="a.zip")
            proxy.keys = ("test-access-key", "test-secret-key")
            right = httpx.get(url, trust_env=False)
            assert right.status_code == 200
            assert right.headers["content-disposition"].startswith("attachment")
            for wrong in (
                url.replace("outputs/1", "outputs/2"),
                url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"),
                url.replace("attachment", "inline"),
                url.replace("outputs/1/a.zip", ""),
            ):
                assert httpx.get(wrong, trust_env=False).status_code == 403
            assert httpx.put(url, content=b"y", trust_env=False).status_code == 403
            assert httpx.delete(url, trust_env=False).status_code == 403

    def test_T8_keys_hold_128_random_bits(self, served: Served, uploaded: str) -> None:
        random = re.compile(r"[0-9a-f]{32}")
        upload = random.search(uploaded.rpartition("/files/")[2].partition("/")[2])
        assert upload is not None
        database = served.database()
        with database.read() as session:
            prefixes = session.scalars(select(Request.storage_prefix)).all()
        database.close()
        found = [random.search(prefix.partition("/")[2].replace("-", "")) for prefix in prefixes]
        assert all(found)
        assert len(set(prefixes)) == len(prefixes)


ERRORS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("T11 unknown path", "GET", "/etc/passwd", {}),
    ("T11 wrong method", "DELETE", "/t2v", {}),
    ("T11 bad body", "POST", "/t2v", {"json": {"rank": "x"}}),
    ("T11 bad url", "POST", "/t2v", {"json": {"training_data_url": "http://127.0.0.1/a.zip"}}),
    ("T11 unknown request", "GET", f"/t2v/requests/{UNKNOWN}", {}),
    ("T11 bad signature", "GET", "/files/1-a/uploads/x", {}),
    ("T11 bad upload", "PUT", "/files/1-a/uploads/x", {"content": b"x"}),
    ("T11 bad part", "PUT", "/files/1-a/uploads/x/multipart/1/999999999", {"content": b"x"}),
    ("T11 bad upload body", "POST", "/storage/upload/initiate", {"json": {"file_name": 7}}),
    ("T11 bad proxy", "POST", "/proxy", {"headers": {"x-fal-target-url": "file:///etc/passwd"}}),
    ("T11 bad query", "GET", f"/t2v/requests/{UNKNOWN}/events?after=x", {}),
    ("T11 bad estimate", "GET", "/t2v/estimate?number_of_steps=x", {}),
]
INSIDES = re.compile(
    r"/(?:work|tmp|usr|home|root|var)/|\.py\b|sqlite|sqlalchemy|pydantic|starlette"
    r"|127\.0\.0\.1:(?!8000)\d+|REELSMITH_(?:DATABASE|SECRET|REDIS|S3)|[0-9a-f]{64}",
    re.IGNORECASE,
)


@pytest.mark.parametrize(
    ("method", "path", "more"), [r[1:] for r in ERRORS], ids=[as_id(r[0]) for r in ERRORS]
)
def test_errors_tell_nothing(served: Served, method: str, path: str, more: dict[str, Any]) -> None:
    reply = served.http.request(method, path, **more)
    assert 400 <= reply.status_code < 500
    assert_tells_nothing(served, reply.text)
    assert not INSIDES.search(reply.text.replace(path, "")), reply.text


@pytest.fixture
def limited(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Gateway]:
    """A gateway of which only the database has keys, in this process: its workers are the test."""
    with running(tmp_path, migrated_sqlite) as gateway:
        yield gateway


class TestFairness:
    """T20: a tenant at its limits is refused, and the other does not notice."""

    def test_T20_queue_and_running(self, limited: Gateway) -> None:
        greedy = make_key(limited.database, max_queued=3, max_running=1)
        modest = make_key(limited.database, max_queued=3, max_running=1)
        post = limited.client.post
        codes = [
            post("/t2v", json=changed("t2v", {}), headers=greedy.header).status_code
            for _ in range(10)
        ]
        assert codes == [200] * 3 + [403] * 7
        assert post("/t2v", json=changed("t2v", {}), headers=modest.header).status_code == 200
        first, second = (claimed(limited.database, Stage.PREPARE) for _ in range(2))
        owners = [owner_of(limited, one) for one in (first, second)]
        assert owners == [greedy.id, modest.id], "the second of the greedy one waits"

    def test_T20_storage(self, limited: Gateway) -> None:
        greedy = make_key(limited.database, max_storage_bytes=1000)
        modest = make_key(limited.database, max_storage_bytes=1000)

        def upload(key: Key, size: int) -> int:
            reply = limited.client.post(
                "/files/upload",
                content=b"x" * size,
                headers={**key.header, "x-fal-file-name": "a.zip"},
            )
            return int(reply.status_code)

        assert upload(greedy, 900) == 200
        assert upload(greedy, 200) == 413
        assert upload(greedy, 10**7) == 413
        assert upload(modest, 900) == 200


def owner_of(gateway: Gateway, claim: lifecycle.Claim) -> str:
    with gateway.database.read() as session:
        return request_row(session, claim.request_id).owner


def request_row(session: Session, request_id: str) -> Request:
    return session.scalars(select(Request).where(Request.id == request_id)).one()


def test_T16_names_of_tenants_are_no_patterns(limited: Gateway, tmp_path: Path) -> None:
    """What a tenant is called reaches neither a key of the store nor one of the broker."""
    hostile = "*{}\n[a-z]\x00../../x"
    with limited.database.write() as session:
        id, text = store.create(session, hostile, store.Limits())
    header = {"authorization": f"Key {text}"}
    reply = limited.client.post("/t2v", json=changed("t2v", {}), headers=header)
    assert reply.status_code == 200
    with limited.database.read() as session:
        row = request_row(session, reply.json()["request_id"])
        assert row.owner == id
        assert re.fullmatch(r"rs-[0-9a-f]{16}", id)
        assert re.fullmatch(r"[\w/-]+", row.storage_prefix)
    ends = time.monotonic() + PATIENCE_S
    while not limited.sent and time.monotonic() < ends:
        time.sleep(0.02)
    assert set(limited.sent) == {"cpu"}, "a wake-up names a queue and nothing else"
    assert json.dumps(hostile)[1:-1] not in reply.text
