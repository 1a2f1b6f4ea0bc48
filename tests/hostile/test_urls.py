"""S1 to S40: URLs that lead inside. A canary listens where each of them leads.

Every row goes to the real fetcher and, as archive, validation video and webhook, to a real gateway.
Pass: the canary is never asked, and no answer tells what was found out.
"""

import contextlib
import socket
import ssl
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from app.fetch import AddressRefused, Fetcher, FetchError, FetchPolicy, UrlRefused
from app.fetch.addresses import IPAddress, is_own
from app.fetch.download import FetchLimits
from app.storage.local import LocalStorage
from app.storage.signing import UrlSigner
from tests.app.asking import changed
from tests.app.conftest import Gateway, running
from tests.app.fetch.server import ScriptedServer, answer, scripted_server
from tests.conformance.tls import Certificates, make_certificates

MAX_BYTES = 1_000_000
QUICK = FetchLimits(
    connect_timeout_s=5.0,
    headers_timeout_s=5.0,
    silence_timeout_s=5.0,
    num_tries=2,
    wait_initial_s=0.01,
    wait_max_s=0.02,
)
INSIDE = b"a page of the internal network"
OWN_NAME = socket.gethostname()


def own_address() -> str:
    """An address of this machine that others see, if it has one; sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])
    return "127.0.0.1"


class Url(NamedTuple):
    """``{port}`` stands for the canary's port. ``seen``: refused at submit already."""

    id: str
    url: str
    seen: bool = True


def at(id: str, host: str, seen: bool = True) -> Url:
    return Url(id, f"http://{host}:{{port}}/clips.zip", seen)


URLS = [
    at("S1-loopback", "127.0.0.1"),
    at("S2-two-parts", "127.1"),
    at("S3-three-parts", "127.0.1"),
    at("S4-end-of-loopback", "127.255.255.254"),
    at("S5-octal-part", "0177.0.0.1"),
    at("S6-hexadecimal-part", "0x7f.0.0.1"),
    at("S7-hexadecimal", "0x7f000001"),
    at("S8-decimal", "2130706433"),
    at("S9-octal", "017700000001"),
    at("S10-zero", "0"),
    at("S11-zeros", "0.0.0.0"),
    at("S12-double-zero", "00.0.0.0"),
    at("S13-fullwidth-digits", "１２７.0.0.1"),
    at("S13-circled-digits", "①②⑦.⓪.⓪.①"),
    at("S14-ideographic-dots", "127。0。0。1"),
    at("S15-circled-letter", "ⓛocalhost", seen=False),
    at("S16-upper-case", "LOCALHOST", seen=False),
    at("S16-trailing-dot", "localhost.", seen=False),
    at("S16-own-name", OWN_NAME, seen=False),
    at("S16-own-address", own_address()),
    at("S17-ipv6-loopback", "[::1]"),
    at("S18-ipv6-unspecified", "[::]"),
    at("S19-mapped", "[::ffff:127.0.0.1]"),
    at("S20-mapped-hexadecimal", "[::ffff:7f00:1]"),
    at("S21-compatible", "[::127.0.0.1]"),
    at("S22-nat64", "[64:ff9b::a9fe:a9fe]"),
    at("S23-local-nat64", "[64:ff9b:1::a9fe:a9fe]"),
    at("S24-6to4", "[2002:7f00:1::]"),
    at("S25-teredo", "[2001:0:7f00:1::]"),
    at("S26-link-local", "[fe80::1%25lo]"),
    at("S27-site-local", "[fec0::1]"),
    at("S28-unique-local", "[fd00:ec2::254]"),
    at("S29-metadata", "169.254.169.254"),
    at("S30-metadata-octal", "0251.0376.0251.0376"),
    at("S30-metadata-decimal", "2852039166"),
    at("S30-container-metadata", "169.254.170.2"),
    *(
        at(f"S31-{name}", address)
        for name, address in {
            "10": "10.0.0.1",
            "172-16": "172.16.0.1",
            "192-168": "192.168.1.1",
            "cgnat": "100.64.0.1",
            "benchmark": "198.18.0.1",
            "protocol": "192.0.0.1",
            "6to4-relay": "192.88.99.1",
            "multicast": "224.0.0.1",
            "reserved": "240.0.0.1",
            "broadcast": "255.255.255.255",
        }.items()
    ),
    Url("S35-backslash", "http://127.0.0.1:{port}\\@example.com/"),
    Url("S35-backslash-other-way", "http://example.com\\@127.0.0.1:{port}/"),
    Url("S35-userinfo", "http://a@127.0.0.1:{port}/"),
    Url("S35-fragment", "http://127.0.0.1:{port}#@example.com/"),
    Url("S36-tab", "http://127.0.0\t.1:{port}/"),
    Url("S36-line-break", "http://127.0.0.1:{port}/\r\nX-Evil: 1"),
    Url("S36-nul", "http://127.0.0.1:{port}/\x00"),
    Url("S36-space", "http://127.0.0.1:{port}/a b"),
    Url("S36-escaped-nul", "http://127.0.0.1%00.example.com:{port}/"),
    Url("S36-name-after-address", "http://[::1]x.example.com:{port}/"),
    Url("S37-file", "file:///etc/passwd"),
    Url("S37-ftp", "ftp://127.0.0.1:{port}/"),
    Url("S37-gopher", "gopher://127.0.0.1:{port}/_GET"),
    Url("S37-data", "data:application/zip;base64,UEsFBg=="),
    Url("S37-jar", "jar:http://127.0.0.1:{port}!/"),
    Url("S37-unix", "unix:/var/run/docker.sock"),
    Url("S37-http-over-unix", "http+unix://%2Fvar%2Frun%2Fdocker.sock/"),
    Url("S37-no-scheme", "//127.0.0.1:{port}/"),
    Url("S37-no-slashes", "http:127.0.0.1"),
    Url("S38-ssh", "http://example.com:22/"),
    Url("S38-smtp", "http://example.com:25/"),
    Url("S38-redis", "http://example.com:6379/"),
    Url("S38-zero", "http://example.com:0/"),
    Url("S38-out-of-range", "http://example.com:99999/"),
    Url("S38-leading-zeros", "http://example.com:0080/"),
    Url("S39-userinfo", "https://aladdin:sesame@example.com/"),
]


@pytest.fixture(scope="module")
def canary() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        server.scripts = [answer(INSIDE)]
        yield server


@pytest.fixture(scope="module")
def canary_on_ipv6(canary: ScriptedServer) -> Iterator[list[str]]:
    """Notes who connects to ``[::1]`` at the canary's port; no IPv6, nobody can."""
    asked: list[str] = []
    if not socket.has_ipv6:
        yield asked
        return
    try:
        listener = socket.create_server(("::1", canary.port), family=socket.AF_INET6)
    except OSError:
        yield asked
        return
    with listener:
        listener.setblocking(False)
        yield asked
        with contextlib.suppress(BlockingIOError):
            asked.append(str(listener.accept()[1]))
    assert asked == []


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path, canary: ScriptedServer
) -> Iterator[Gateway]:
    """Allows the canary's port, for files and webhooks, so that nothing but the address is left
    to refuse."""
    ports = str(canary.port)
    folder = tmp_path_factory.mktemp("gateway")
    with running(
        folder, migrated_sqlite, fetch_extra_ports=ports, webhook_extra_ports=ports
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """For fal's names and localhost, of an authority that only these tests trust."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    signer = UrlSigner(b"k" * 32, "http://gateway.test:8000")
    return LocalStorage(tmp_path / "store", signer, url_expiry_s=3600)


Resolve = Callable[[str, int], Sequence[IPAddress]]
Fetch = Callable[..., bytes]


@pytest.fixture
def fetch(storage: LocalStorage, canary: ScriptedServer, tmp_path: Path) -> Fetch:
    """The fetcher with the canary's port allowed; what else is allowed is the test's to say."""

    def run(
        url: str,
        resolver: Resolve | None = None,
        *,
        allow: Sequence[str] = (),
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> bytes:
        more = {} if resolver is None else {"resolver": resolver}
        policy = FetchPolicy.allowing(allow, [canary.port, port], **more)
        to = tmp_path / "got"
        fetcher = Fetcher(policy, storage, limits=QUICK, ssl_context=tls)
        fetcher.download(url, to, max_bytes=MAX_BYTES)
        return to.read_bytes()

    return run


@pytest.mark.parametrize("case", URLS, ids=lambda case: case.id)
def test_never_connected(
    canary: ScriptedServer,
    canary_on_ipv6: list[str],
    fetch: Fetch,
    gateway: Gateway,
    tmp_path: Path,
    case: Url,
) -> None:
    url = case.url.format(port=canary.port)
    with pytest.raises(UrlRefused) as caught:
        fetch(url)
    check_text(caught.value.message, url)
    for field, reply in submits(gateway, url):
        assert reply.status_code == (422 if case.seen else 200), (field, reply.text[:300])
        if case.seen:
            (detail,) = reply.json()["detail"]
            assert field in detail["loc"]
            check_text(detail["msg"], url)
    assert canary.heads == []
    assert not (tmp_path / "got").exists()


def submits(gateway: Gateway, url: str) -> Iterator[tuple[str, Any]]:
    """The field that names ``url`` and the answer, for every kind of URL a user can name."""
    post = gateway.client.post
    yield "training_data_url", post("/t2v", json=changed("t2v", {"training_data_url": url}))
    validation = [{"prompt": "a", "video_url": url}]
    yield "video_url", post("/outpaint", json=changed("outpaint", {"validation": validation}))
    body = changed("t2v", {})
    yield "fal_webhook", post("/t2v", params={"fal_webhook": url}, json=body)


def check_text(text: str, url: str) -> None:
    """One short line that names nothing but what the user named, and no password of theirs."""
    assert text.isprintable()
    assert len(text) < 400
    assert "sesame" not in text
    named = unicodedata.normalize("NFKC", url).replace("。", ".")
    for inner in ("127.0.0.1", "::1", "169.254"):
        assert inner not in text or inner in named


class TestNames:
    """What only the connection shows."""

    def test_S32_mixed_answer(self, canary: ScriptedServer, fetch: Fetch) -> None:
        for mixed in (("8.8.8.8", "127.0.0.1"), ("127.0.0.1", "8.8.8.8"), ("2606:4700::1", "::1")):
            found = [ip_address(address) for address in mixed]
            with pytest.raises(AddressRefused):
                fetch(f"http://files.example.org:{canary.port}/", lambda *_, found=found: found)
        assert canary.heads == []

    def test_S33_rebinding(self, canary: ScriptedServer, fetch: Fetch) -> None:
        """A name that turns inside after the first look: each connection looks once, and goes
        where it looked."""
        answers = iter(["192.0.2.7", "127.0.0.1", "127.0.0.1"])

        def rebinding(host: str, port: int) -> Sequence[IPAddress]:
            return [ip_address(next(answers))]

        for _ in range(3):
            with pytest.raises(AddressRefused):
                fetch(f"http://rebind.example.org:{canary.port}/", rebinding)
        assert next(answers, None) is None, "every attempt looked exactly once"
        assert canary.heads == []

    def test_S16_own_public_address(self) -> None:
        """The kernel knows which addresses are its own, whatever they are called."""
        assert is_own(ip_address(own_address()))


def to_loopback(host: str, port: int) -> Sequence[IPAddress]:
    return [ip_address("127.0.0.1")]


REDIRECTS = [
    ("S34-302-to-loopback", "http://127.0.0.2:{port}/", "302 Found", "public internet"),
    ("S34-307-to-metadata", "http://169.254.169.254/", "307 Temporary Redirect", "public internet"),
    ("S34-308-to-ipv6", "http://[::1]:{port}/", "308 Permanent Redirect", "public internet"),
    ("S34-to-a-name", "http://localhost:{port}/", "302 Found", "public internet"),
    ("S34-to-file", "file:///etc/passwd", "302 Found", "http://"),
    ("S34-to-gopher", "gopher://127.0.0.1:{port}/", "302 Found", "http://"),
    ("S34-loop", "/again", "302 Found", "more than 5"),
]


@pytest.mark.parametrize(
    ("location", "status", "says"), [r[1:] for r in REDIRECTS], ids=[r[0] for r in REDIRECTS]
)
def test_redirects(
    canary: ScriptedServer, fetch: Fetch, location: str, status: str, says: str
) -> None:
    with scripted_server() as outside:
        to = location.format(port=canary.port)
        outside.scripts = [answer(b"", f"Location: {to}", status=status)]
        url = f"http://files.example.org:{outside.port}/clips.zip"
        with pytest.raises(FetchError, match=says) as caught:
            fetch(url, to_loopback, allow=["files.example.org"], port=outside.port)
        assert len(outside.heads) <= 6
    check_text(caught.value.message, to)
    assert canary.heads == []


def test_S35_fragment_is_no_host(fetch: Fetch) -> None:
    """Both halves of ``#@`` are read as RFC 3986 has them: the host is the first."""
    assert FetchPolicy().check("http://example.com#@127.0.0.1/").host == "example.com"


def test_S37_upper_case_is_the_same_scheme() -> None:
    assert FetchPolicy().check("HTTP://EXAMPLE.COM/a").url == "http://example.com/a"


def test_S39_passwords_stay_out_of_the_log(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    for _, reply in submits(gateway, "https://aladdin:sesame@example.com/"):
        assert reply.status_code == 422
        assert "sesame" not in reply.text
    assert "sesame" not in caplog.text


class TestSurroundings:
    """S40: what stands around the fetcher does not decide where it goes."""

    def test_S40_proxy_variables(
        self, canary: ScriptedServer, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
        with scripted_server() as outside:
            outside.scripts = [answer(b"from outside")]
            got = fetch(outside.url, allow=["127.0.0.1"], port=outside.port)
        assert got == b"from outside"
        assert canary.heads == []

    def test_S40_no_proxy_variable(self, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("NO_PROXY", "*")
        with pytest.raises(AddressRefused):
            fetch("http://127.0.0.1/")

    def test_S40_host_header(self, fetch: Fetch) -> None:
        """The Host header is the URL's host, whatever the URL tries."""
        with scripted_server() as outside:
            outside.scripts = [answer(b"x")]
            fetch(
                f"http://Files.Example.ORG:{outside.port}/a?Host:%20evil%0d%0aHost:%20evil",
                to_loopback,
                allow=["127.0.0.1"],
                port=outside.port,
            )
            assert outside.header(0, "host") == f"files.example.org:{outside.port}"
            assert outside.heads[0].lower().count("\r\nhost:") == 1

    @pytest.mark.parametrize(
        ("host", "redirect", "says"),
        [
            pytest.param("other.test", None, "certificate", id="S40-certificate-of-another-name"),
            pytest.param("queue.fal.run", "http://{host}/", "https to http", id="S34-downgrade"),
        ],
    )
    def test_tls(
        self, certificates: Certificates, fetch: Fetch, host: str, redirect: str | None, says: str
    ) -> None:
        with scripted_server(certificates.server()) as outside:
            name = f"{host}:{outside.port}"
            headers = [f"Location: {redirect.format(host=name)}"] if redirect else []
            status = "302 Found" if redirect else "200 OK"
            outside.scripts = [answer(b"x", *headers, status=status)]
            with pytest.raises(FetchError, match=says):
                fetch(
                    f"https://{name}/clips.zip",
                    to_loopback,
                    allow=["127.0.0.1"],
                    port=outside.port,
                    tls=certificates.client(),
                )
            assert len(outside.heads) == (1 if redirect else 0)
