"""fal's JavaScript client through one path (`fal-protocol.md` 1.7, C35)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.conftest import Gateway, running

BODY = {"training_data_url": "https://example.com/a.zip"}
KEY = {"authorization": "Key secret"}
T2V = "fal-ai/ltx23-trainer-v2/t2v"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Gateway]:
    with running(tmp_path_factory.mktemp("keyed"), migrated_sqlite, api_keys="secret") as gateway:
        yield gateway


def to(url: str) -> dict[str, str]:
    return {**KEY, "x-fal-target-url": url}


@pytest.mark.parametrize("proxy", ["/proxy", "/api/fal/proxy", "/proxy/"])
def test_the_queue_through_the_proxy(keyed: Gateway, proxy: str) -> None:
    url = f"https://queue.fal.run/{T2V}?fal_webhook=https%3A%2F%2Fexample.com%2Fhook"
    submitted = keyed.client.post(proxy, json=BODY, headers=to(url))
    assert submitted.status_code == 200, submitted.text
    base = (
        f"https://queue.fal.run/fal-ai/ltx23-trainer-v2/requests/{submitted.json()['request_id']}"
    )
    status = keyed.client.get(proxy, headers=to(f"{base}/status/?logs=1"))
    assert (status.status_code, status.json()["logs"]) == (202, [])
    pending = keyed.client.get(proxy, headers=to(base))
    assert (pending.status_code, pending.json()["error_type"]) == (400, "bad_request")
    assert keyed.client.put(proxy, headers=to(f"{base}/cancel")).status_code == 202
    stream = keyed.client.get(proxy, headers=to(f"{base}/status/stream?logs=1"))
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert '"status":"COMPLETED"' in stream.text
    assert "example.com/hook" not in stream.text


def test_uploads_through_the_proxy(keyed: Gateway) -> None:
    content = os.urandom(3_000_000)
    urls = keyed.client.post(
        "/proxy",
        json={"file_name": "clips.zip", "content_type": "application/zip"},
        headers=to("https://rest.fal.ai/storage/upload/initiate?storage_type=fal-cdn-v3"),
    ).json()
    assert keyed.client.put(urls["upload_url"], content=content).status_code == 200
    proxied = keyed.client.post(
        "/proxy",
        content=content,
        headers={**to("https://v3.fal.media/files/upload"), "x-fal-file-name": "clips.zip"},
    ).json()
    for url in (urls["file_url"], proxied["access_url"]):
        assert keyed.client.get(url).content == content


def test_the_key_is_the_callers(keyed: Gateway) -> None:
    headers = {"x-fal-target-url": f"https://queue.fal.run/{T2V}"}
    assert keyed.client.post("/proxy", json=BODY, headers=headers).status_code == 401


REFUSED = {
    "another host": "https://example.com/t2v",
    "a host that ends so": "https://evilfal.run/t2v",
    "a host below": "https://x.fal.run/t2v",
    "a user name": "https://queue.fal.run@example.com/t2v",
    "the metadata service": "http://169.254.169.254/latest",
    "itself": "http://127.0.0.1:8000/t2v",
    "another port": "https://queue.fal.run:8443/t2v",
    "another scheme": "ftp://queue.fal.run/t2v",
    "no scheme": "queue.fal.run/t2v",
    "a broken host": "https://[::1/t2v",
    "a broken port": "https://queue.fal.run:x/t2v",
    "nothing": "",
    "a line break": "https://queue.fal.run/\tt2v",
    "latin-1": "https://queue.fal.run/\xe9",
}


@pytest.mark.parametrize("url", REFUSED.values(), ids=REFUSED)
def test_other_targets_are_refused(keyed: Gateway, url: str) -> None:
    headers = [("x-fal-target-url", url.encode("latin-1")), ("authorization", b"Key secret")]
    reply = keyed.client.get("/proxy", headers=headers)
    assert reply.status_code == 412
    assert reply.json()["error_type"] == reply.headers["x-fal-error-type"]
    assert "x-fal-target-url" in reply.json()["detail"]


def test_no_target(keyed: Gateway) -> None:
    reply = keyed.client.post("/proxy", json=BODY, headers=KEY)
    assert (reply.status_code, reply.json()["error_type"]) == (400, "bad_request")


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://queue.fal.run/proxy", 404),
        ("https://queue.fal.run/nowhere", 404),
        ("https://queue.fal.run", 404),
        ("https://queue.fal.run/%2e%2e/etc/passwd", 404),
        ("https://queue.fal.run/%ff%00", 404),
        (f"https://queue.fal.run/{T2V}/stream", 404),
        ("https://rest.fal.ai/tokens/", 404),
        ("https://queue.fal.run/workflows/me/x/requests/1/status", 404),
    ],
)
def test_targets_that_are_not_here(keyed: Gateway, url: str, status: int) -> None:
    reply = keyed.client.post("/proxy", json={}, headers=to(url))
    assert reply.status_code == status
