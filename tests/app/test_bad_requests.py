"""Bad inputs over HTTP (`reliability.md` 4.5): never a 5xx, never a huge answer."""

import gzip
import json
from collections.abc import Iterator

import pytest

from app.requests import body as body_module
from tests.app.conftest import Gateway

JSON = {"content-type": "application/json"}
URL = b'"training_data_url": "https://example.com/a.zip"'
MAX_ANSWER_BYTES = 16_000


def with_field(field: str, value: bytes) -> bytes:
    return b'{%s, "%s": %s}' % (URL, field.encode(), value)


BODIES: list[tuple[str, bytes, int]] = [
    ("A1 NaN", with_field("number_of_steps", b"NaN"), 422),
    ("A1 NaN in a number", with_field("learning_rate", b"NaN"), 422),
    ("A2 Infinity", with_field("stg_scale", b"Infinity"), 422),
    ("A2 -Infinity", with_field("rank", b"-Infinity"), 422),
    ("A3 1e999", with_field("learning_rate", b"1e999"), 422),
    ("A3 1e999 as an integer", with_field("frame_rate", b"1e999"), 422),
    ("A4 [NaN]", with_field("resolution", b"[NaN]"), 422),
    ("A4 NaN in a prompt", with_field("validation", b'[{"prompt": NaN}]'), 422),
    ("A5 surrogate in a wrong field", with_field("rank", rb'"\ud800"'), 422),
    ("A5 surrogate as a choice", with_field("aspect_ratio", rb'"\udfff"'), 422),
    ("A6 surrogate in text", with_field("trigger_phrase", rb'"a\ud800b"'), 422),
    ("A6 raw surrogate", with_field("trigger_phrase", b'"\xed\xa0\x80"'), 422),
    ("A6 NUL in text", with_field("trigger_phrase", rb'"a\u0000b"'), 422),
    ("A7 5,000 digits", with_field("number_of_steps", b"9" * 5_000), 422),
    ("A7 4,000 digits", with_field("number_of_steps", b"9" * 4_000), 422),
    ("A8 -2^63-1", with_field("number_of_frames", b"-9223372036854775809"), 422),
    ("A8 10^20", with_field("frame_rate", b"100000000000000000000"), 422),
    ("A9 2000.0", with_field("number_of_steps", b"2000.0"), 422),
    ("A9 1e3", with_field("number_of_steps", b"1e3"), 422),
    ("A9 text", with_field("number_of_steps", b'"2000"'), 422),
    ("A9 true", with_field("number_of_steps", b"true"), 422),
    ("A9 2000", with_field("number_of_steps", b"2000"), 200),
    ("A10 32.0", with_field("rank", b"32.0"), 422),
    ("A10 true", with_field("rank", b"true"), 422),
    ("A11 90", with_field("number_of_frames", b"90"), 200),
    ("A12 1e-300", with_field("learning_rate", b"1e-300"), 422),
    (
        "A13 the same prompt twice",
        with_field("validation", b'[{"prompt":"a"},{"prompt":"a"}]'),
        200,
    ),
    ("A13 many entries", with_field("validation", b"[" + b"{}," * 9_999 + b"{}]"), 422),
    ("A14 a long phrase", with_field("trigger_phrase", b'"%s"' % (b"x" * 900_000)), 422),
    ("A14 emoji", with_field("trigger_phrase", b'"%s"' % ("\U0001f600" * 10_000).encode()), 422),
    ("A14 escape codes", with_field("trigger_phrase", rb'"\u001b[31m"'), 422),
    ("A15 a key twice", with_field("rank", b'8, "rank": 16'), 200),
    ("A15 unknown keys", with_field("__proto__", b'{"constructor": {"prototype": 1}}'), 200),
    ("A15 a long unknown key", with_field("k" * 100_000, b"1"), 200),
    ("A16 nested arrays", with_field("validation", b"[" * 100_000), 422),
    ("A16 closed nested arrays", with_field("validation", b"[" * 9_999 + b"]" * 9_999), 422),
    ("A17 nested objects", b'{"a":' * 100_000, 422),
    ("A18 empty", b"", 422),
    ("A18 white space", b" \n", 422),
    ("A18 broken", b"{", 422),
    ("A18 array", b"[]", 422),
    ("A18 array of bodies", b"[{%s}]" % URL, 422),
    ("A18 string", b'"x"', 422),
    ("A18 number", b"1", 422),
    ("A18 null", b"null", 422),
    ("A18 two documents", b"{%s}{%s}" % (URL, URL), 422),
    ("A18 a comma too many", b"{%s,}" % URL, 422),
    ("A18 single quotes", b"{'a': 1}", 422),
    ("A19 BOM", b"\xef\xbb\xbf{%s}" % URL, 422),
    ("A19 UTF-16", f"{{{URL.decode()}}}".encode("utf-16"), 422),
    ("A19 latin-1", with_field("trigger_phrase", b'"\xe9"'), 422),
    ("A34 a log line in a phrase", with_field("trigger_phrase", rb'"a\n{\"level\": \"x\"}"'), 422),
]


@pytest.mark.parametrize(
    ("body", "status"), [row[1:] for row in BODIES], ids=[r[0] for r in BODIES]
)
def test_bodies(shared_gateway: Gateway, body: bytes, status: int) -> None:
    reply = shared_gateway.client.post("/t2v", content=body, headers=JSON)
    assert reply.status_code == status, reply.text[:500]
    assert len(reply.content) < MAX_ANSWER_BYTES
    answer = json.loads(reply.content, parse_constant=pytest.fail)
    if status == 422:
        assert reply.headers["x-fal-billable-units"] == "0"
        for detail in answer["detail"]:
            assert detail["loc"][0] == "body"
            assert {"msg", "type", "url"} <= set(detail)
            assert "/work" not in detail["msg"]


HEADERS: list[tuple[str, dict[str, str], int]] = [
    ("json", {"content-type": "application/json"}, 200),
    ("json with charset", {"content-type": "Application/JSON; charset=UTF-8"}, 200),
    ("none", {"content-type": ""}, 415),
    ("text", {"content-type": "text/plain"}, 415),
    ("form", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ("multipart", {"content-type": "multipart/form-data; boundary=x"}, 415),
    ("utf-7", {"content-type": "application/json; charset=utf-7"}, 415),
    ("utf-16", {"content-type": "application/json; charset=utf-16"}, 415),
    ("xml", {"content-type": "application/json+xml"}, 415),
    ("deflate", {**JSON, "content-encoding": "deflate"}, 415),
    ("identity", {**JSON, "content-encoding": "identity"}, 200),
    ("junk options", {**JSON, "x-fal-queue-priority": "\x7f", "x-fal-no-retry": "maybe"}, 200),
]


@pytest.mark.parametrize(
    ("headers", "status"), [r[1:] for r in HEADERS], ids=[r[0] for r in HEADERS]
)
def test_media_types(shared_gateway: Gateway, headers: dict[str, str], status: int) -> None:
    reply = shared_gateway.client.post("/t2v", content=b"{%s}" % URL, headers=headers)
    assert reply.status_code == status


def test_a_compressed_bomb_is_never_inflated(shared_gateway: Gateway) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    headers = {**JSON, "content-encoding": "gzip"}
    assert shared_gateway.client.post("/t2v", content=bomb, headers=headers).status_code == 415


def test_a_large_body_is_refused_while_it_streams(shared_gateway: Gateway) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(200):
            sent += 1
            yield b" " * 1_000_000

    reply = shared_gateway.client.post("/t2v", content=endless(), headers=JSON)
    assert reply.status_code == 413
    assert reply.json()["error_type"] == "payload_too_large"
    assert reply.headers["connection"] == "close"


def test_the_largest_body_is_read(shared_gateway: Gateway) -> None:
    body = b"{%s}" % URL
    body += b" " * (body_module.MAX_BODY_BYTES - len(body))
    assert shared_gateway.client.post("/t2v", content=body, headers=JSON).status_code == 200
    assert shared_gateway.client.post("/t2v", content=body + b" ", headers=JSON).status_code == 413


SUBMIT_OPTIONS: list[tuple[str, str, dict[str, str], int]] = [
    ("A31 webhook twice", "fal_webhook=https://a/b&fal_webhook=https://a/c", {}, 422),
    ("A31 empty webhook", "fal_webhook=", {}, 422),
    ("A31 relative webhook", "fal_webhook=/hook", {}, 422),
    ("A31 long webhook", "fal_webhook=https://a/" + "x" * 10_000, {}, 422),
    ("A31 another scheme", "fal_webhook=gopher://a/b", {}, 422),
    ("A31 a broken host", "fal_webhook=https://[::1", {}, 422),
    ("A31 CRLF", "fal_webhook=https://a/%0d%0aX:y", {}, 422),
    ("A31 fine", "fal_webhook=https://a/b%3Fc%3Dd", {}, 200),
    ("A32 timeout -1", "", {"x-fal-request-timeout": "-1"}, 422),
    ("A32 timeout 0", "", {"x-fal-request-timeout": "0"}, 422),
    ("A32 timeout NaN", "", {"x-fal-request-timeout": "NaN"}, 422),
    ("A32 timeout text", "", {"x-fal-request-start-timeout": "soon"}, 422),
    ("A32 timeout of digits", "", {"x-fal-request-timeout": "9" * 400}, 422),
    ("A32 timeout 1e9", "", {"x-fal-request-timeout": "1e9"}, 200),
    ("A32 timeout inf", "", {"x-fal-request-timeout": "inf"}, 200),
    ("queue length text", "fal_max_queue_length=many", {}, 422),
    ("queue length -1", "fal_max_queue_length=-1", {}, 422),
    ("queue length 10^30", "fal_max_queue_length=" + "9" * 30, {}, 422),
    ("queue length in other digits", "fal_max_queue_length=%D9%A3", {}, 422),
    ("unknown parameters", "a=b&logs=%00", {}, 200),
    ("A23 a long URL", "a=" + "x" * 60_000, {}, 414),
    ("A23 many headers", "", {f"x-{n}": "y" for n in range(10_000)}, 431),
    ("A23 a long header", "", {"x-long": "y" * 100_000}, 431),
]


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [r[1:] for r in SUBMIT_OPTIONS],
    ids=[r[0] for r in SUBMIT_OPTIONS],
)
def test_options(shared_gateway: Gateway, query: str, headers: dict[str, str], status: int) -> None:
    reply = shared_gateway.client.post(
        f"/t2v?{query}", content=b"{%s}" % URL, headers={**JSON, **headers}
    )
    assert reply.status_code == status
    assert len(reply.content) < MAX_ANSWER_BYTES
    assert "x-fal-request-id" in reply.headers


PATHS: list[tuple[str, str, int]] = [
    ("GET", "/", 404),
    ("GET", "//t2v", 404),
    ("POST", "/T2V", 404),
    ("POST", "/t2v/..%2f..%2fetc/passwd", 404),
    ("POST", "/t2v%00", 404),
    ("POST", "/t2v%0d%0aset-cookie:a=b", 404),
    ("GET", "/%ff%fe", 404),
    ("GET", "/workflows/me/x/requests/1/status", 404),
    ("POST", "/t2v/stream", 404),
    ("POST", "/run/fal-ai/ltx23-trainer-v2/t2v/stream", 404),
    ("GET", "/run/t2v", 405),
    ("GET", "/t2v", 405),
    ("PUT", "/t2v", 405),
    ("OPTIONS", "/t2v", 405),
    ("TRACE", "/t2v", 405),
    ("HEAD", "/t2v", 405),
    ("DELETE", "/t2v/requests/x", 405),
    ("POST", "/t2v/requests/00000000-0000-4000-8000-000000000000/cancel", 405),
    ("GET", "/t2v/requests/not-a-uuid/status", 404),
    ("GET", "/t2v/requests/00000000-0000-4000-8000-000000000000", 404),
    ("GET", "/t2v/requests/00000000-0000-4000-8000-00000000000A/status", 404),
    ("GET", "/t2v/requests/*/status", 404),
    ("GET", "/t2v/requests/'%20OR%201=1--/status", 404),
    ("GET", "/t2v/requests/%E2%80%A8/status", 404),
    ("GET", f"/t2v/requests/{'x' * 10_000}/status", 404),
    ("PUT", "/t2v/requests/%00/cancel", 404),
]


@pytest.mark.parametrize(("method", "path", "status"), PATHS, ids=lambda value: str(value)[:50])
def test_paths(shared_gateway: Gateway, method: str, path: str, status: int) -> None:
    reply = shared_gateway.client.request(method, path, follow_redirects=False)
    assert reply.status_code == status
    assert (
        method == "HEAD"
        or reply.json() == {"status": "NOT_FOUND"}
        or (reply.json()["error_type"] == reply.headers["x-fal-error-type"])
    )
    assert "set-cookie" not in reply.headers
    assert "access-control-allow-origin" not in reply.headers
    assert "x-fal-request-id" in reply.headers
    assert len(reply.content) < 1_000


@pytest.mark.parametrize(
    ("path", "methods"),
    [("/t2v", "POST"), ("/files/1-a/uploads/x", "GET, HEAD, PUT"), ("/health", "GET")],
)
def test_a_wrong_method_is_told_all_right_ones(
    shared_gateway: Gateway, path: str, methods: str
) -> None:
    reply = shared_gateway.client.delete(path)
    assert (reply.status_code, reply.headers["allow"]) == (405, methods)
    assert reply.json()["error_type"] == "method_not_allowed"


@pytest.mark.parametrize("namespace", ["workflows", "comfy", "run/workflows"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("below", ["me/x", "me/x/requests/1", "me/x/requests/1/status", "me/x/"])
def test_namespaces_are_routed(
    shared_gateway: Gateway, namespace: str, method: str, below: str
) -> None:
    """C45."""
    reply = shared_gateway.client.request(method, f"/{namespace}/{below}")
    assert reply.status_code == 404
    if method != "HEAD":
        assert ("requests" in below) == (reply.json() == {"status": "NOT_FOUND"})


def test_a_bug_is_a_500_without_its_reason(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    async def broken(*args: object) -> None:
        raise RuntimeError("a secret reason")

    monkeypatch.setattr("app.requests.service.RequestService.submit", broken)
    client = TestClient(
        gateway.client.app, base_url=gateway.settings.public_url, raise_server_exceptions=False
    )
    reply = client.post("/t2v", content=b"{%s}" % URL, headers=JSON)
    assert reply.status_code == 500
    assert reply.json() == {"detail": "Internal Server Error", "error_type": "internal_error"}
    assert reply.headers["x-fal-error-type"] == "internal_error"
    assert "x-fal-request-id" in reply.headers
