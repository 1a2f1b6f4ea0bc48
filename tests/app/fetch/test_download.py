"""Downloads from a server that misbehaves (`spec/reliability.md` R11, S33, S34, S40)."""

import contextlib
import datetime
import gzip
import hashlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.fetch.addresses import IPAddress
from app.fetch.download import Downloaded, Fetcher, FetchLimits
from app.fetch.errors import AddressRefused, DownloadFailed, FetchError, FileTooLarge, UrlRefused
from app.fetch.policy import FetchPolicy
from app.storage.local import LocalStorage
from app.storage.signing import UrlSigner
from tests.app.fetch.server import (
    Script,
    ScriptedServer,
    answer,
    raw,
    scripted_server,
    then_reset,
)

BODY = os.urandom(300_000)
HALF = len(BODY) // 2
MAX_BYTES = 1_000_000
ETAG = 'ETag: "v1"'
PUBLIC_URL = "http://gateway.test:8000"

QUICK = FetchLimits(
    connect_timeout_s=2.0,
    headers_timeout_s=1.0,
    silence_timeout_s=0.5,
    total_timeout_s=20.0,
    min_rate_bytes_s=10_000,
    rate_window_s=0.5,
    num_tries=4,
    wait_initial_s=0.01,
    wait_max_s=0.02,
)


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "store", UrlSigner(b"k" * 32, PUBLIC_URL), url_expiry_s=3600)


@pytest.fixture
def fetcher(storage: LocalStorage, server: ScriptedServer) -> Fetcher:
    return Fetcher(FetchPolicy.allowing(["127.0.0.1"], [server.port]), storage, limits=QUICK)


@pytest.fixture
def fetch(fetcher: Fetcher, server: ScriptedServer, tmp_path: Path) -> Callable[..., Downloaded]:
    """Downloads the server's URL, answered by these scripts; the file must be right."""

    def run(*scripts: Script) -> Downloaded:
        server.scripts = list(scripts)
        got = fetcher.download(server.url, tmp_path / "got", max_bytes=MAX_BYTES)
        content = (tmp_path / "got").read_bytes()
        assert got.size_bytes == len(content)
        assert got.sha256 == hashlib.sha256(content).hexdigest()
        assert content == BODY
        return got

    return run


def rest_from(offset: int, *headers: str) -> Script:
    """206 with the bytes from ``offset`` on."""
    content_range = f"Content-Range: bytes {offset}-{len(BODY) - 1}/{len(BODY)}"
    return answer(BODY[offset:], content_range, *headers, status="206 Partial Content")


def redirect_to(url: str, status: str = "302 Found") -> Script:
    return answer(b"", f"Location: {url}", status=status)


FIRST_HALF = answer(BODY[:HALF], ETAG, length=len(BODY))
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_plain(fetch: Callable[..., Downloaded], server: ScriptedServer) -> None:
    got = fetch(answer(BODY, "Content-Type: application/zip; x=y"))
    assert (got.content_type, got.file_name) == ("application/zip", "clips.zip")
    assert server.header(0, "accept-encoding") == "identity"
    assert server.header(0, "host") == f"127.0.0.1:{server.port}"


def test_named_by_the_server(fetch: Callable[..., Downloaded]) -> None:
    got = fetch(answer(BODY, 'Content-Disposition: attachment; filename="../my set.zip"'))
    assert got.file_name == "my_set.zip"


def test_progress(fetcher: Fetcher, server: ScriptedServer, tmp_path: Path) -> None:
    server.scripts = [answer(BODY)]
    seen: list[tuple[int, int | None]] = []
    fetcher.download(
        server.url,
        tmp_path / "got",
        max_bytes=MAX_BYTES,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_ended_by_its_caller(fetcher: Fetcher, server: ScriptedServer, tmp_path: Path) -> None:
    server.scripts = [answer(BODY)]

    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int | None) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        fetcher.download(server.url, tmp_path / "got", max_bytes=MAX_BYTES, on_progress=cancel)
    assert list(tmp_path.glob("got*")) == []


class TestResume:
    def test_goes_on_where_it_ended(
        self, fetch: Callable[..., Downloaded], server: ScriptedServer
    ) -> None:
        fetch(FIRST_HALF, rest_from(HALF, ETAG))
        assert server.header(1, "if-range") == '"v1"'
        assert server.header(1, "range") == f"bytes={HALF}-"

    def test_after_a_reset(self, fetch: Callable[..., Downloaded], server: ScriptedServer) -> None:
        def continues(connection: socket.socket, head: str) -> None:
            # A reset also discards what the client had not read yet.
            asked = server.header(1, "range") or "bytes=0-"
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            script = rest_from(start, ETAG) if start else answer(BODY)
            script(connection, head)

        fetch(then_reset(FIRST_HALF), continues)

    @pytest.mark.parametrize(
        "second",
        [
            pytest.param(answer(BODY, 'ETag: "v2"'), id="200 to a range request"),
            pytest.param(rest_from(HALF - 7, ETAG), id="206 from another byte"),
            pytest.param(rest_from(HALF, 'ETag: "v2"'), id="206 with another etag"),
            pytest.param(answer(BODY[HALF:], ETAG, status="206 Partial"), id="206 without a range"),
            pytest.param(answer(status="416 Range Not Satisfiable"), id="416"),
            pytest.param(answer(status="503 Busy"), id="503"),
        ],
    )
    def test_starts_again_when_it_is_not_the_rest(
        self, fetch: Callable[..., Downloaded], second: Script
    ) -> None:
        fetch(FIRST_HALF, second, answer(BODY))

    @pytest.mark.parametrize("etag", ["X-Nothing: 1", 'ETag: W/"v1"', 'ETag: "é"'])
    def test_only_with_a_strong_etag(
        self, fetch: Callable[..., Downloaded], server: ScriptedServer, etag: str
    ) -> None:
        fetch(answer(BODY[:HALF], etag, length=len(BODY)), answer(BODY))
        assert server.header(1, "range") is None

    @pytest.mark.parametrize(
        "first",
        [
            pytest.param(raw(b""), id="closed without an answer"),
            pytest.param(then_reset(raw(b"")), id="reset without an answer"),
            pytest.param(raw(b"SSH-2.0-OpenSSH\r\n"), id="another protocol"),
            pytest.param(answer(BODY[:HALF], length=len(BODY)), id="short of its length"),
            pytest.param(raw(CHUNKED, b"5\r\nabcde\r\n"), id="chunked without an end"),
            pytest.param(raw(CHUNKED, b"zz\r\n"), id="chunked nonsense"),
            pytest.param(answer(status="500 Oops"), id="500"),
            pytest.param(answer(status="429 Slow down"), id="429"),
            pytest.param(lambda connection, head: time.sleep(0.8), id="silent"),
        ],
    )
    def test_second_try(self, fetch: Callable[..., Downloaded], first: Script) -> None:
        fetch(first, answer(BODY))


def one_byte_at_a_time(connection: socket.socket, head: str) -> None:
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
    with contextlib.suppress(OSError):
        for _ in range(100):
            connection.sendall(b"x")
            time.sleep(0.05)


def headers_one_byte_at_a_time(connection: socket.socket, head: str) -> None:
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)


def endless(connection: socket.socket, head: str) -> None:
    connection.sendall(CHUNKED)
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


@pytest.mark.parametrize(
    ("script", "error", "text"),
    [
        pytest.param(answer(status="404 Not Found"), DownloadFailed, "404", id="404"),
        pytest.param(answer(status="403 Forbidden"), DownloadFailed, "403", id="403"),
        pytest.param(answer(status="204 No Content"), DownloadFailed, "204", id="204"),
        pytest.param(answer(status="302 Found"), DownloadFailed, "302", id="302 without location"),
        pytest.param(answer(status="500 Oops"), DownloadFailed, "answers 500", id="500 for ever"),
        pytest.param(raw(b""), DownloadFailed, "breaks off", id="always closed"),
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
            DownloadFailed,
            "breaks off",
            id="two lengths",
        ),
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 300_000), DownloadFailed, "breaks off", id="head"
        ),
        pytest.param(one_byte_at_a_time, DownloadFailed, "too slowly", id="1 byte at a time"),
        pytest.param(headers_one_byte_at_a_time, DownloadFailed, "too long", id="slow head"),
        pytest.param(
            answer(gzip.compress(b"\0" * 10_000_000), "Content-Encoding: gzip"),
            DownloadFailed,
            "content encoding",
            id="gzip bomb",
        ),
        pytest.param(
            rest_from(HALF, ETAG), DownloadFailed, "another part", id="206 that nobody asked for"
        ),
        pytest.param(answer(BODY, length=MAX_BYTES + 1), FileTooLarge, "larger", id="declared"),
        pytest.param(answer(BODY, length=10**15), FileTooLarge, "larger", id="declared, huge"),
        pytest.param(endless, FileTooLarge, "larger", id="endless"),
        pytest.param(redirect_to("/again"), DownloadFailed, "more than 5", id="loop"),
        pytest.param(redirect_to("file:///etc/passwd"), UrlRefused, "http", id="to file:"),
        pytest.param(redirect_to("gopher://127.0.0.1/"), UrlRefused, "http", id="to gopher:"),
        pytest.param(redirect_to("//127.0.0.1:1/"), UrlRefused, "port 1", id="to a port"),
        pytest.param(redirect_to("http://["), UrlRefused, "no URL", id="to half an address"),
        pytest.param(
            redirect_to("http://169.254.169.254/"), AddressRefused, "public", id="to metadata"
        ),
        pytest.param(
            redirect_to("http://[::1]/", "308 Permanent Redirect"),
            AddressRefused,
            "public",
            id="to ::1",
        ),
        pytest.param(
            redirect_to("http://127.0.0.2/", "307 Temporary Redirect"),
            AddressRefused,
            "public",
            id="in",
        ),
    ],
)
def test_fails_in_time(
    fetcher: Fetcher,
    server: ScriptedServer,
    tmp_path: Path,
    script: Script,
    error: type[FetchError],
    text: str,
) -> None:
    server.scripts = [script]
    started = time.monotonic()
    with pytest.raises(error, match=text) as caught:
        fetcher.download(server.url, tmp_path / "got", max_bytes=MAX_BYTES)
    assert time.monotonic() - started < 8
    assert caught.value.users_fault
    assert list(tmp_path.glob("got*")) == []
    if error is FileTooLarge:
        assert (caught.value.type, caught.value.ctx) == ("file_too_large", {"max_size": MAX_BYTES})
    else:
        assert caught.value.type == "file_download_error"


def test_follows_redirects(fetch: Callable[..., Downloaded], server: ScriptedServer) -> None:
    fetch(redirect_to("other/place.zip"), redirect_to("?signed=1"), answer(BODY))
    asked = [head.split(" ")[1] for head in server.heads]
    assert asked == [
        "/files/clips.zip",
        "/files/other/place.zip",
        "/files/other/place.zip?signed=1",
    ]


def test_nothing_is_connected_that_is_not_allowed(
    storage: LocalStorage, server: ScriptedServer, tmp_path: Path
) -> None:
    fetcher = Fetcher(FetchPolicy.allowing([], [server.port]), storage, limits=QUICK)
    for url in (server.url, f"http://localhost:{server.port}/"):
        with pytest.raises(AddressRefused):
            fetcher.download(url, tmp_path / "got", max_bytes=MAX_BYTES)
    assert server.heads == []


def test_the_checked_address_is_the_connected_one(
    storage: LocalStorage, server: ScriptedServer, tmp_path: Path
) -> None:
    """S33: a name that resolves to something else every time is looked up once per connection."""
    server.scripts = [answer(BODY)]
    answers = iter(["127.0.0.1", "127.0.0.2"])

    def rebinding(host: str, port: int) -> Sequence[IPAddress]:
        return [ip_address(next(answers))]

    policy = FetchPolicy.allowing(["127.0.0.1"], [server.port], resolver=rebinding)
    fetcher = Fetcher(policy, storage, limits=QUICK)
    url = f"http://rebind.example.org:{server.port}/clips.zip"
    fetcher.download(url, tmp_path / "got", max_bytes=MAX_BYTES)
    assert server.header(0, "host") == f"rebind.example.org:{server.port}"
    assert next(answers) == "127.0.0.2"


def test_falls_back_to_the_next_address(
    storage: LocalStorage, server: ScriptedServer, tmp_path: Path
) -> None:
    server.scripts = [answer(BODY)]
    policy = FetchPolicy.allowing(
        ["127.0.0.0/8"],
        [server.port],
        resolver=lambda host, port: [ip_address("127.0.0.3"), ip_address("127.0.0.1")],
    )
    fetcher = Fetcher(policy, storage, limits=QUICK)
    url = f"http://two.example.org:{server.port}/"
    assert fetcher.download(url, tmp_path / "got", max_bytes=MAX_BYTES).size_bytes == len(BODY)


def test_no_proxy_from_the_environment(
    fetch: Callable[..., Downloaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S40."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    fetch(answer(BODY))


class TestOwnFiles:
    @pytest.fixture
    def url(self, storage: LocalStorage, tmp_path: Path) -> str:
        (tmp_path / "source").write_bytes(BODY)
        storage.put_file("uploads/1/clips.zip", tmp_path / "source", content_type="application/zip")
        return storage.signed_url("uploads/1/clips.zip")

    def test_come_from_the_store(self, fetcher: Fetcher, url: str, tmp_path: Path) -> None:
        got = fetcher.download(url, tmp_path / "got", max_bytes=MAX_BYTES)
        assert (tmp_path / "got").read_bytes() == BODY
        assert got == Downloaded(
            len(BODY), hashlib.sha256(BODY).hexdigest(), "application/zip", "clips.zip"
        )

    def test_are_capped_too(self, fetcher: Fetcher, url: str, tmp_path: Path) -> None:
        with pytest.raises(FileTooLarge):
            fetcher.download(url, tmp_path / "got", max_bytes=len(BODY) - 1)

    def test_may_be_gone(
        self, fetcher: Fetcher, storage: LocalStorage, url: str, tmp_path: Path
    ) -> None:
        storage.delete("uploads/1/clips.zip")
        with pytest.raises(DownloadFailed, match="upload it again"):
            fetcher.download(url, tmp_path / "got", max_bytes=MAX_BYTES)

    def test_need_their_signature(self, fetcher: Fetcher, url: str, tmp_path: Path) -> None:
        with pytest.raises(UrlRefused):
            fetcher.download(url.replace("/1/", "/2/"), tmp_path / "got", max_bytes=MAX_BYTES)


class TestTls:
    """S40: a certificate for another name."""

    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        """Self-signed, for files.example.org; key and certificate in one file."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("files.example.org")]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        path = tmp_path / "certificate.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return path

    @pytest.mark.parametrize(
        ("host", "fits"), [("files.example.org", True), ("other.example.org", False)]
    )
    def test_name(
        self, storage: LocalStorage, certificate: Path, tmp_path: Path, host: str, fits: bool
    ) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        with scripted_server(tls) as server:
            server.scripts = [answer(BODY)]
            policy = FetchPolicy.allowing(
                ["127.0.0.1"], [server.port], lambda _host, _port: [ip_address("127.0.0.1")]
            )
            trusting = ssl.create_default_context(cafile=certificate)
            fetcher = Fetcher(policy, storage, limits=QUICK, ssl_context=trusting)
            url = f"https://{host}:{server.port}/clips.zip"
            if fits:
                got = fetcher.download(url, tmp_path / "got", max_bytes=MAX_BYTES)
                assert got.size_bytes == len(BODY)
            else:
                with pytest.raises(DownloadFailed, match="certificate"):
                    fetcher.download(url, tmp_path / "got", max_bytes=MAX_BYTES)
                assert server.heads == []

    def test_no_way_back_to_http(
        self, storage: LocalStorage, certificate: Path, tmp_path: Path
    ) -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
        with scripted_server(tls) as server:
            server.scripts = [redirect_to(f"http://files.example.org:{server.port}/")]
            policy = FetchPolicy.allowing(
                ["127.0.0.1"], [server.port], lambda _host, _port: [ip_address("127.0.0.1")]
            )
            fetcher = Fetcher(
                policy,
                storage,
                limits=QUICK,
                ssl_context=ssl.create_default_context(cafile=certificate),
            )
            with pytest.raises(UrlRefused, match="https to http"):
                fetcher.download(
                    f"https://files.example.org:{server.port}/",
                    tmp_path / "got",
                    max_bytes=MAX_BYTES,
                )


def test_what_is_known_is_not_sent_again(
    fetcher: Fetcher, server: ScriptedServer, tmp_path: Path
) -> None:
    """An ETag of before, weak or strong: 304 brings nothing, a new file brings its own."""
    server.scripts = [
        answer(BODY, 'ETag: W/"v1"'),
        answer(status="304 Not Modified"),
        answer(BODY, 'ETag: "v2"'),
    ]
    first = fetcher.download(server.url, tmp_path / "first", max_bytes=MAX_BYTES)
    assert (first.etag, server.header(0, "if-none-match")) == ('W/"v1"', None)

    def again(etag: str) -> Downloaded | None:
        to = tmp_path / "again"
        return fetcher.download_if_changed(server.url, to, etag, max_bytes=MAX_BYTES)

    assert again(first.etag) is None
    assert server.header(1, "if-none-match") == 'W/"v1"'
    assert not (tmp_path / "again").exists()
    changed = again(first.etag)
    assert changed is not None
    assert (changed.etag, changed.sha256) == ('"v2"', first.sha256)
    assert (tmp_path / "again").read_bytes() == BODY


def test_304_that_nobody_asked_for_is_an_error(
    fetcher: Fetcher, server: ScriptedServer, tmp_path: Path
) -> None:
    server.scripts = [answer(status="304 Not Modified")]
    with pytest.raises(DownloadFailed, match="answers 304"):
        fetcher.download(server.url, tmp_path / "got", max_bytes=MAX_BYTES)
