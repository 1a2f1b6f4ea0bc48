"""Files over HTTP: signed reading, and the uploads of both fal clients."""

import asyncio
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from app import replies
from app.auth import Authenticator
from app.db.engine import AsyncDatabase
from app.settings import Settings
from app.storage import make_signer
from app.storage.base import Storage
from app.storage.endpoints import router_for
from app.storage.local import LocalStorage
from app.storage.multipart import LIFETIME_S, sweep_parts
from preprocessing import failpoints
from tests.app.storage.conftest import EXPIRY_S, PUBLIC_URL

API_KEY = "id:secret"
MAX_BYTES = 1000
CONTENT = bytes(range(200))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        public_url=PUBLIC_URL,
        api_keys=(SecretStr(API_KEY),),
        max_archive_bytes=MAX_BYTES,
        url_expiry_s=EXPIRY_S,
    )


@pytest.fixture
def store(settings: Settings) -> LocalStorage:
    return LocalStorage(settings.data_dir / "storage", make_signer(settings), url_expiry_s=EXPIRY_S)


@pytest.fixture
def http(settings: Settings, store: LocalStorage, migrated_sqlite: Path) -> Iterator["Client"]:
    shutil.copy(migrated_sqlite, settings.data_dir / "reelsmith.db")
    app = FastAPI()
    replies.install(app)
    database = AsyncDatabase(settings.database_url)
    owner = Authenticator.of(settings, database)
    app.include_router(router_for(store, settings, owner, database))
    with asyncio.Runner() as runner:
        yield Client(app, runner)
        runner.run(database.close())


class Client:
    """httpx on the app, without a network. Owns the key unless told otherwise."""

    def __init__(self, app: object, runner: asyncio.Runner) -> None:
        self._app = app
        self._runner = runner

    def __call__(
        self, method: str, url: str, *, key: str | None = API_KEY, **options: object
    ) -> httpx.Response:
        headers = dict(options.pop("headers", {}))  # type: ignore[call-overload]
        if key is not None:
            headers.setdefault("authorization", f"Key {key}")

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url=PUBLIC_URL) as client:
                return await client.request(method, url, headers=headers, **options)  # type: ignore[arg-type]

        return self._runner.run(send())


@pytest.fixture
def stored_url(store: LocalStorage, file: Callable[[bytes], Path]) -> str:
    store.put_file("outputs/1/lora.safetensors", file(CONTENT))
    return store.signed_url("outputs/1/lora.safetensors", file_name="my lora.safetensors")


class TestReading:
    def test_whole_file(self, http: Client, stored_url: str) -> None:
        answer = http("GET", stored_url, key=None)
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert answer.headers["content-length"] == "200"
        assert answer.headers["etag"] == f'"{hashlib.sha256(CONTENT).hexdigest()}"'
        assert answer.headers["content-disposition"] == 'attachment; filename="my_lora.safetensors"'
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]

    def test_head(self, http: Client, stored_url: str) -> None:
        whole, head = http("GET", stored_url, key=None), http("HEAD", stored_url, key=None)
        assert (head.status_code, head.content) == (200, b"")
        same = ("content-length", "etag", "content-type", "accept-ranges")
        assert [head.headers[name] for name in same] == [whole.headers[name] for name in same]

    @pytest.mark.parametrize(
        ("asked", "status", "start", "stop"),
        [
            pytest.param("bytes=0-9", 206, 0, 10, id="first ten"),
            pytest.param("bytes=190-", 206, 190, 200, id="open end"),
            pytest.param("bytes=-5", 206, 195, 200, id="suffix"),
            pytest.param("bytes=-500", 206, 0, 200, id="suffix longer than the file"),
            pytest.param("bytes=150-9999", 206, 150, 200, id="end behind the file"),
            pytest.param("bytes=5-4", 200, 0, 200, id="backwards is ignored"),
            pytest.param("bytes=0-1,5-6", 200, 0, 200, id="several are ignored"),
            pytest.param("bytes=-", 200, 0, 200, id="nothing is ignored"),
            pytest.param("lines=1-2", 200, 0, 200, id="other units are ignored"),
        ],
    )
    def test_ranges(
        self, http: Client, stored_url: str, asked: str, status: int, start: int, stop: int
    ) -> None:
        answer = http("GET", stored_url, key=None, headers={"range": asked})
        assert (answer.status_code, answer.content) == (status, CONTENT[start:stop])
        assert answer.headers["content-length"] == str(stop - start)
        expected = f"bytes {start}-{stop - 1}/200" if status == 206 else None
        assert answer.headers.get("content-range") == expected

    @pytest.mark.parametrize("asked", ["bytes=200-", "bytes=999-1000", "bytes=-0"])
    def test_ranges_behind_the_end(self, http: Client, stored_url: str, asked: str) -> None:
        answer = http("GET", stored_url, key=None, headers={"range": asked})
        assert answer.status_code == 416
        assert answer.headers["content-range"] == "bytes */200"

    def test_validators(self, http: Client, stored_url: str) -> None:
        etag = http("HEAD", stored_url, key=None).headers["etag"]
        same = http("GET", stored_url, key=None, headers={"if-none-match": etag})
        assert (same.status_code, same.content) == (304, b"")
        part = {"range": "bytes=0-0"}
        holds = http("GET", stored_url, key=None, headers={**part, "if-range": etag})
        changed = http("GET", stored_url, key=None, headers={**part, "if-range": '"other"'})
        assert (holds.status_code, changed.status_code) == (206, 200)

    def test_uploaded_html_is_not_a_page(
        self, http: Client, store: LocalStorage, file: Callable[[bytes], Path]
    ) -> None:
        store.put_file("a/page.html", file(b"<script>alert(1)</script>"), content_type="text/html")
        answer = http("GET", store.signed_url("a/page.html"), key=None)
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment")

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda url: url.replace("/1/lora", "/2/lora"), id="other key"),
            pytest.param(lambda url: url.replace("my_lora", "other"), id="other name"),
            pytest.param(lambda url: url.partition("?")[0], id="no name"),
            pytest.param(lambda url: url.replace("/files/1", "/files/2"), id="later expiry"),
            pytest.param(lambda url: url.replace("/outputs", "//outputs"), id="double slash"),
            pytest.param(lambda url: url.replace("outputs", "%6futputs0"), id="escaped key"),
            pytest.param(lambda url: PUBLIC_URL + "/files/x/outputs/1/lora.safetensors", id="none"),
        ],
    )
    def test_changed_urls(
        self, http: Client, stored_url: str, change: Callable[[str], str]
    ) -> None:
        assert http("GET", change(stored_url)).status_code == 403

    def test_reading_does_not_permit_writing(self, http: Client, stored_url: str) -> None:
        assert http("PUT", stored_url, content=b"mine").status_code == 403
        assert http("GET", stored_url).content == CONTENT

    def test_missing(self, http: Client, store: LocalStorage) -> None:
        assert http("GET", store.signed_url("outputs/none")).status_code == 404


class TestSingleUploads:
    """JavaScript `storage.upload`, and the fallback of the Python client."""

    def test_initiate_and_put(self, http: Client, store: LocalStorage) -> None:
        asked = {"file_name": "../my clips.zip", "content_type": "application/zip"}
        urls = http("POST", "/storage/upload/initiate?storage_type=gcs", json=asked).json()
        put = http(
            "PUT",
            urls["upload_url"],
            key=None,
            content=CONTENT,
            headers={"content-type": "application/zip"},
        )
        assert (put.status_code, put.headers["content-type"]) == (200, "application/json")
        answer = http("GET", urls["file_url"], key=None)
        assert answer.content == CONTENT
        assert answer.headers["content-type"] == "application/zip"
        key = store.key_of_own_url(urls["file_url"])
        assert key is not None
        prefix, random, name = key.split("/")
        assert (prefix, name) == ("uploads", "my_clips.zip")
        assert len(bytes.fromhex(random)) >= 16

    def test_upload_url_is_for_one_key_and_method(self, http: Client) -> None:
        urls = [
            http("POST", "/storage/upload/initiate", json={"file_name": "a"}).json()
            for _ in range(2)
        ]
        first, second = (urlsplit(pair["upload_url"]).path.split("/", 3) for pair in urls)
        crossed = "/".join((*first[:3], second[3]))
        assert http("PUT", crossed, content=b"x").status_code == 403
        assert http("GET", urls[0]["upload_url"]).status_code == 403

    def test_too_large(self, http: Client, settings: Settings) -> None:
        url = http("POST", "/storage/upload/initiate", json={}).json()["upload_url"]
        assert http("PUT", url, content=b"x" * (MAX_BYTES + 1)).status_code == 413

        async def undeclared():  # type: ignore[no-untyped-def]
            for _ in range(3):
                yield b"x" * 400

        assert http("PUT", url, content=undeclared()).status_code == 413
        assert http("PUT", url, content=b"x" * MAX_BYTES).status_code == 200
        assert list((settings.data_dir / "staging").iterdir()) == []

    @pytest.mark.parametrize("key", [None, "wrong"])
    @pytest.mark.parametrize(
        "path",
        [
            "/storage/auth/token",
            "/storage/upload/initiate",
            "/storage/upload/initiate-multipart",
            "/files/upload",
            "/files/upload/multipart",
        ],
    )
    def test_needs_a_key(self, http: Client, path: str, key: str | None) -> None:
        assert http("POST", path, key=key, json={}).status_code == 401

    @pytest.mark.parametrize(
        "path", ["/storage/upload/initiate", "/storage/upload/initiate-multipart"]
    )
    def test_without_a_key_no_body_is_read(self, http: Client, path: str) -> None:
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while read < 64 * 2**20:
                read += 2**20
                yield b" " * 2**20

        kind = {"content-type": "application/json"}
        assert http("POST", path, key=None, content=endless(), headers=kind).status_code == 401
        assert http("POST", path, content=endless(), headers=kind).status_code == 413

    @pytest.mark.parametrize("number", ["0", "10001", "9" * 5000, "-1", "x", "1e3", "%D9%A1"])
    def test_parts_are_numbered(self, http: Client, number: str) -> None:
        url = http("POST", "/storage/upload/initiate-multipart", json={"file_name": "a"}).json()
        assert http("PUT", f"{url['upload_url']}/{number}", content=b"x").status_code == 400

    def test_cdn_upload(self, http: Client) -> None:
        token = http("POST", "/storage/auth/token?storage_type=fal-cdn-v3", json={}).json()
        assert token["base_url"] == PUBLIC_URL
        answer = http(
            "POST",
            "/files/upload",
            key=None,
            content=CONTENT,
            headers={
                "authorization": f"{token['token_type']} {token['token']}",
                "content-type": "video/mp4",
                "x-fal-file-name": "clip.mp4",
            },
        )
        url = answer.json()["access_url"]
        assert url.endswith("/clip.mp4")
        assert http("GET", url, key=None).content == CONTENT

    @pytest.mark.parametrize("spoil", [lambda token: token + "x", lambda token: "9" + token])
    def test_spoiled_token(self, http: Client, spoil: Callable[[str], str]) -> None:
        token = http("POST", "/storage/auth/token", json={}).json()["token"]
        headers = {"authorization": f"Bearer {spoil(token)}"}
        assert http("POST", "/files/upload", key=None, headers=headers).status_code == 401

    def test_a_full_disk(
        self,
        http: Client,
        settings: Settings,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is the operator's, and said as such; what had come is removed."""
        armed = tmp_path / "armed"
        armed.write_text("store.before_put enospc 1\n")
        monkeypatch.setattr(failpoints, "_file", str(armed))
        answer = http("POST", "/files/upload", content=CONTENT)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "service_unavailable")
        assert list((settings.data_dir / "staging").iterdir()) == []
        assert http("POST", "/files/upload", content=CONTENT).status_code == 200


class TestMultipart:
    PARTS = (b"a" * 100, b"b" * 100, b"c" * 50)

    def start_python(self, http: Client) -> tuple[str, str]:
        """(access URL, URL below which parts go)."""
        headers = {"x-fal-file-name": "clips.zip", "content-type": "application/zip"}
        begun = http("POST", "/files/upload/multipart", headers=headers).json()
        access_url = begun["access_url"]
        assert "?" not in access_url
        return access_url, f"{access_url}/multipart/{begun['uploadId']}"

    def start_javascript(self, http: Client) -> tuple[str, str]:
        body = {"file_name": "clips.zip", "content_type": "application/zip"}
        begun = http("POST", "/storage/upload/initiate-multipart", json=body).json()
        return begun["file_url"], begun["upload_url"]

    @pytest.mark.parametrize("start", [start_python, start_javascript])
    def test_parts_in_any_order(
        self,
        http: Client,
        store: LocalStorage,
        start: Callable[["TestMultipart", Client], tuple[str, str]],
    ) -> None:
        url, base = start(self, http)
        parts = []
        for number in (3, 1, 2):
            put = http("PUT", f"{base}/{number}", key=None, content=self.PARTS[number - 1])
            assert put.json() == {"partNumber": number, "etag": put.headers["etag"]}
            parts.append(put.json())
        for _ in range(2):  # the clients repeat it when the answer is lost
            done = http("POST", f"{base}/complete", key=None, json={"parts": parts})
            assert done.status_code == 200
        answer = http("GET", url, key=None)
        assert answer.content == b"".join(self.PARTS)
        assert answer.headers["content-type"] == "application/zip"
        assert store.list_keys("parts") == []

    def test_a_part_sent_again_replaces_the_first(self, http: Client) -> None:
        url, base = self.start_javascript(http)
        http("PUT", f"{base}/1", content=b"half")
        part = http("PUT", f"{base}/1", content=b"whole").json()
        http("POST", f"{base}/complete", json={"parts": [part]})
        assert http("GET", url).content == b"whole"

    @pytest.mark.parametrize(
        ("numbers", "etag"),
        [
            pytest.param((), None, id="no parts"),
            pytest.param((2,), None, id="gap at the start"),
            pytest.param((1, 3), None, id="gap"),
            pytest.param((1, 2), None, id="part that never came"),
            pytest.param((1,), '"another"', id="part that came otherwise"),
        ],
    )
    def test_incomplete(self, http: Client, numbers: tuple[int, ...], etag: str | None) -> None:
        url, base = self.start_javascript(http)
        sent = {n: http("PUT", f"{base}/{n}", content=b"x").json()["etag"] for n in (1, 3)}
        parts = [{"partNumber": n, "etag": etag or sent.get(n, '"-"')} for n in numbers]
        assert http("POST", f"{base}/complete", json={"parts": parts}).status_code == 400
        assert http("GET", url).status_code == 404

    def test_the_whole_may_not_be_too_large(self, http: Client) -> None:
        url, base = self.start_javascript(http)
        parts = [http("PUT", f"{base}/{n}", content=b"x" * 600).json() for n in (1, 2)]
        assert http("POST", f"{base}/complete", json={"parts": parts}).status_code == 413
        assert http("GET", url).status_code == 404

    def test_upload_id_is_for_one_key(self, http: Client) -> None:
        _, first = self.start_javascript(http)
        url, _ = self.start_javascript(http)
        upload_id = first.rpartition("/")[2]
        assert http("PUT", f"{url}/multipart/{upload_id}/1", content=b"x").status_code == 403
        assert http("PUT", f"{url}/multipart/invented/1", content=b"x").status_code == 403
        assert http("PUT", f"{first}/0", content=b"x").status_code == 400

    def test_sweep(self, http: Client, store: Storage) -> None:
        _, base = self.start_javascript(http)
        http("PUT", f"{base}/1", content=b"x")
        assert sweep_parts(store) == 0
        assert sweep_parts(store, now=lambda: time.time() + LIFETIME_S + 1) == 1
        assert store.list_keys("parts") == []
