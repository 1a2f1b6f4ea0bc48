"""Uploads: C36-C38."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conformance.clients import JavaScript, Python
from tests.conformance.gateway import ALICE, Gateway
from tests.conformance.tls import Certificates
from tests.conformance.wire import Hop

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
MIB = 1024 * 1024


def digest_at(http: httpx.Client, url: str) -> tuple[int, str]:
    """Size and SHA-256 of what is stored there; the URL alone is the permission."""
    digest, size = hashlib.sha256(), 0
    with http.stream("GET", url) as response:
        assert response.status_code == 200
        for chunk in response.iter_bytes():
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


@pytest.fixture
def public(gateway: Gateway) -> Iterator[httpx.Client]:
    with gateway.http(None) as http:
        yield http


def made(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return path


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_c36_python_bytes(python: Python, public: httpx.Client) -> None:
    url = python("tell(fal_client.upload(b'0123456789', 'text/plain'))", key=ALICE)
    response = public.get(url)
    assert response.content == b"0123456789"
    assert response.headers["content-type"].startswith("text/plain")


def test_c36_python_as_the_docs_say(
    gateway: Gateway, certificates: Certificates, home: Path, public: httpx.Client, tmp_path: Path
) -> None:
    """No proxy: the two variables, and what docs/protocol.md adds for uploads."""
    path = made(tmp_path / "clips.zip", MIB)
    host = f"localhost:{gateway.settings.port}"
    (code,) = re.findall(r"```python\n(.*?)```", PROTOCOL.read_text(), re.DOTALL)
    script = (
        code.replace("reelsmith.example.org", host) + "tell(fal_client.upload_file(given.path))"
    )
    way = {"FAL_RUN_HOST": f"{host}/run", "FAL_QUEUE_RUN_HOST": host}
    url = Python(way, certificates.ca, home)(script, key=ALICE, path=str(path))
    assert url.startswith(gateway.url)
    assert digest_at(public, url) == (MIB, sha256(path))


def test_c36_python_large_file(
    counted_python: Python, hop: Hop, public: httpx.Client, tmp_path: Path
) -> None:
    path = made(tmp_path / "large.bin", 101 * MIB)
    url = counted_python("tell(fal_client.upload_file(given.path))", key=ALICE, path=str(path))
    assert digest_at(public, url) == (101 * MIB, sha256(path))
    assert len(hop.called("PUT", r"/multipart/[^/]+/\d+$")) == 11


def test_c36_parts_in_any_order(s: httpx.Client, public: httpx.Client) -> None:
    """Python names the parts in the order in which they were finished."""
    begun = s.post("/files/upload/multipart", headers={"X-Fal-File-Name": "a.bin"}).json()
    base = f"{begun['access_url'].partition('?')[0]}/multipart/{begun['uploadId']}"
    contents = {number: bytes([number]) * (5 * MIB) for number in (3, 1, 2)}
    parts = []
    for number, content in contents.items():
        reply = s.put(f"{base}/{number}", content=content)
        assert reply.status_code == 200
        parts.append({"partNumber": number, "etag": reply.headers["etag"]})
    assert s.post(f"{base}/complete", json={"parts": parts}).status_code == 200
    expected = b"".join(contents[number] for number in (1, 2, 3))
    assert digest_at(public, begun["access_url"]) == (
        len(expected),
        hashlib.sha256(expected).hexdigest(),
    )


@pytest.mark.parametrize("size_mib", [1, 91])
def test_c37_javascript(
    js: JavaScript, public: httpx.Client, tmp_path: Path, size_mib: int
) -> None:
    """The larger one goes in parts."""
    path = made(tmp_path / "file.bin", size_mib * MIB)
    url = js(
        """
        const { openAsBlob } = await import("node:fs");
        const blob = await openAsBlob(given.path, { type: "application/octet-stream" });
        tell(await fal.storage.upload(blob));
        """,
        key=ALICE,
        path=str(path),
    )
    assert digest_at(public, url) == (size_mib * MIB, sha256(path))


def test_c37_reply_to_a_part(s: httpx.Client, public: httpx.Client) -> None:
    begun = s.post(
        "/storage/upload/initiate-multipart?storage_type=fal-cdn-v3",
        json={"content_type": "text/plain", "file_name": "a.txt"},
    ).json()
    # As the client does: no key, no content type, only what the URL permits.
    reply = public.put(f"{begun['upload_url']}/1", content=b"the only part")
    assert reply.headers["content-type"].startswith("application/json")
    part = reply.json()
    assert set(part) == {"partNumber", "etag"}
    done = public.post(f"{begun['upload_url']}/complete", json={"parts": [part]})
    assert done.status_code == 200
    assert public.get(begun["file_url"]).content == b"the only part"


def test_c38_cdn_fails(counted_python: Python, hop: Hop, public: httpx.Client) -> None:
    hop.fault(500, "POST", r"v3\.fal\.media.*/files/upload", times=100)
    url = counted_python("tell(fal_client.upload(b'0123456789', 'text/plain'))", key=ALICE)
    assert public.get(url).content == b"0123456789"
    assert hop.called("POST", r"/storage/upload/initiate\?storage_type=gcs")
