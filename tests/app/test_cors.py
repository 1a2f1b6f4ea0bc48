"""Web pages of other origins (C34; docs/decisions/0007)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError

from app.settings import Settings
from tests.app.conftest import Gateway, running

PAGE = "https://studio.example.com"
OTHER = "https://elsewhere.example.com"
KEY = {"authorization": "Key secret"}
BODY = {"training_data_url": "https://example.com/a.zip"}
ASKS = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-fal-queue-priority",
}
READABLE = {
    "x-fal-request-id",
    "x-fal-billable-units",
    "x-fal-error-type",
    "x-fal-request-timeout-type",
    "content-length",
    "content-range",
    "etag",
}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Gateway]:
    """With keys: open to all pages."""
    with running(tmp_path_factory.mktemp("keyed"), migrated_sqlite, api_keys="secret") as gateway:
        yield gateway


@pytest.fixture(scope="module")
def keyless(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Gateway]:
    """Single-user mode, with one page let in."""
    folder = tmp_path_factory.mktemp("keyless")
    with running(folder, migrated_sqlite, cors_origins=PAGE) as gateway:
        yield gateway


@pytest.mark.parametrize("path", ["/t2v", "/fal-ai/ltx23-trainer-v2/t2v", "/proxy", "/nowhere"])
def test_a_preflight_needs_no_key(keyed: Gateway, path: str) -> None:
    reply = keyed.client.options(path, headers=ASKS)
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
    assert {"GET", "POST", "PUT"} <= set(reply.headers["access-control-allow-methods"].split(", "))
    assert "access-control-allow-credentials" not in reply.headers
    assert "x-fal-request-id" in reply.headers


def test_headers_that_are_no_names_are_not_repeated(keyed: Gateway) -> None:
    headers = {**ASKS, "access-control-request-headers": "x y;z"}
    reply = keyed.client.options("/t2v", headers=headers)
    assert "authorization" in reply.headers["access-control-allow-headers"]
    assert "y;z" not in reply.headers["access-control-allow-headers"]


REPLIES = {
    "submitted": ("POST", "/t2v", {"json": BODY, "headers": KEY}, 200),
    "no key": ("POST", "/t2v", {"json": BODY}, 401),
    "invalid": ("POST", "/t2v", {"json": {}, "headers": KEY}, 422),
    "no such path": ("GET", "/nowhere", {}, 404),
    "no such method": ("GET", "/t2v", {}, 405),
    "a long URL": ("GET", "/t2v?" + "x" * 20_000, {}, 414),
    "large headers": ("GET", "/t2v", {"headers": {"x-long": "y" * 40_000}}, 431),
    "a foreign target": ("GET", "/proxy", {"headers": {"x-fal-target-url": "https://a/"}}, 412),
    "not proxied": ("GET", "/proxy", {}, 400),
}


@pytest.mark.parametrize(
    ("method", "path", "more", "status"), list(REPLIES.values()), ids=list(REPLIES)
)
def test_every_reply_can_be_read(
    keyed: Gateway, method: str, path: str, more: dict, status: int
) -> None:
    headers = {**more.pop("headers", {}), "origin": PAGE}
    reply = keyed.client.request(method, path, headers=headers, **more)
    assert reply.status_code == status
    assert reply.headers["access-control-allow-origin"] == "*"
    assert set(reply.headers["access-control-expose-headers"].split(", ")) >= READABLE
    assert "x-fal-request-id" in reply.headers


def test_a_bug_can_be_read(keyed: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("app.requests.service.RequestService.submit", broken)
    client = TestClient(keyed.client.app, raise_server_exceptions=False)
    reply = client.post("/t2v", json=BODY, headers={**KEY, "origin": PAGE})
    assert reply.status_code == 500
    assert reply.headers["access-control-allow-origin"] == "*"


def test_without_an_origin_nothing_is_said(keyed: Gateway) -> None:
    reply = keyed.client.post("/t2v", json=BODY, headers=KEY)
    assert not [name for name in reply.headers if name.startswith("access-control")]


SINGLE_USERS_ROUTES = [
    ("GET", "/health"),
    ("GET", "/openapi.json"),
    ("GET", "/t2v/requests/00000000-0000-4000-8000-000000000000/status"),
    ("POST", "/t2v"),
    ("POST", "/storage/auth/token"),
    ("POST", "/files/upload"),
    ("POST", "/files/upload/multipart"),
    ("POST", "/proxy"),
    ("PUT", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), SINGLE_USERS_ROUTES)
@pytest.mark.parametrize("origin", [OTHER, "null", "http://127.0.0.1:9999", "http://localhost"])
def test_without_keys_pages_of_others_are_refused(
    keyless: Gateway, method: str, path: str, origin: str
) -> None:
    # A page sends these without asking first: nothing about them is special to a browser.
    headers = {"origin": origin, "content-type": "text/plain"}
    reply = keyless.client.request(method, path, headers=headers)
    assert reply.status_code == 403
    assert "REELSMITH_CORS_ORIGINS" in reply.json()["detail"]
    assert "access-control-allow-origin" not in reply.headers
    assert reply.headers["vary"] == "Origin"


def test_without_keys_no_page_is_let_in_unasked(shared_gateway: Gateway) -> None:
    assert shared_gateway.client.options("/t2v", headers=ASKS).status_code == 403
    reply = shared_gateway.client.post("/t2v", json=BODY, headers={"origin": PAGE})
    assert reply.status_code == 403


def test_a_page_that_was_let_in(keyless: Gateway) -> None:
    preflight = keyless.client.options("/t2v", headers=ASKS)
    assert preflight.status_code == 204
    reply = keyless.client.post("/t2v", json=BODY, headers={"origin": PAGE})
    assert reply.status_code == 200
    for answer in (preflight, reply):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000"])
def test_its_own_pages_are_let_in(keyless: Gateway, host: str) -> None:
    headers = {"host": host, "origin": f"http://{host}"}
    assert keyless.client.post("/t2v", json=BODY, headers=headers).status_code == 200


def test_files_are_open_to_whoever_has_their_url(keyless: Gateway) -> None:
    file = keyless.settings.data_dir / "lora.safetensors"
    file.write_bytes(b"weights")
    keyless.storage.put_file("outputs/1/lora.safetensors", file)
    url = keyless.storage.signed_url("outputs/1/lora.safetensors")
    preflight = keyless.client.options(
        url, headers={**ASKS, "origin": OTHER, "access-control-request-method": "PUT"}
    )
    part = keyless.client.get(url, headers={"origin": OTHER, "range": "bytes=0-2"})
    head = keyless.client.head(url, headers={"origin": OTHER})
    assert (preflight.status_code, part.status_code, head.status_code) == (204, 206, 200)
    assert (part.content, head.headers["content-length"]) == (b"wei", "7")
    for reply in (preflight, part, head):
        assert reply.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    "origin", ["studio.example.com", "https://a.example/", "https://A.example"]
)
def test_settings_name_origins(origin: str) -> None:
    with pytest.raises(ValidationError, match="lower case"):
        Settings(cors_origins=origin)
