"""Which URLs and addresses are refused: the S rows of `spec/reliability.md` 4.1, no network."""

import socket
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from app.fetch.addresses import IPAddress, is_own, is_public
from app.fetch.errors import AddressRefused, UrlRefused
from app.fetch.policy import FetchPolicy, system_resolver


def answering(*addresses: str) -> FetchPolicy:
    """A policy whose resolver knows one answer."""

    def resolve(host: str, port: int) -> Sequence[IPAddress]:
        return [ip_address(address) for address in addresses]

    return FetchPolicy.allowing([], resolver=resolve)


NEVER = FetchPolicy.allowing([], resolver=lambda host, port: pytest.fail(f"looked up {host!r}"))


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("127.0.0.1", id="S1"),
        pytest.param("127.255.255.254", id="S4"),
        pytest.param("0.0.0.0", id="S11"),
        pytest.param("::1", id="S17"),
        pytest.param("::", id="S18"),
        pytest.param("::ffff:127.0.0.1", id="S19 mapped"),
        pytest.param("::ffff:7f00:1", id="S20 mapped"),
        pytest.param("::127.0.0.1", id="S21 compatible"),
        pytest.param("::8.8.8.8", id="S21 compatible, public inside"),
        pytest.param("64:ff9b::a9fe:a9fe", id="S22 NAT64"),
        pytest.param("64:ff9b:1::a9fe:a9fe", id="S23 local NAT64"),
        pytest.param("64:ff9b:1::808:808", id="S23 local NAT64, public inside"),
        pytest.param("2002:7f00:1::", id="S24 6to4"),
        pytest.param("2002:808:808::", id="S24 6to4, public inside"),
        pytest.param("2001:0:7f00:1::", id="S25 Teredo"),
        pytest.param("fe80::1", id="S26"),
        pytest.param("fec0::1", id="S27 site-local"),
        pytest.param("fd00:ec2::254", id="S28"),
        pytest.param("169.254.169.254", id="S29"),
        pytest.param("169.254.170.2", id="S30"),
        pytest.param("10.0.0.1", id="S31 10/8"),
        pytest.param("172.16.0.1", id="S31 172.16/12"),
        pytest.param("172.31.255.255", id="S31 172.16/12 end"),
        pytest.param("192.168.1.1", id="S31 192.168/16"),
        pytest.param("100.64.0.1", id="S31 CGNAT"),
        pytest.param("100.100.100.200", id="S31 CGNAT metadata"),
        pytest.param("198.18.0.1", id="S31 benchmark"),
        pytest.param("192.0.0.1", id="S31 protocol"),
        pytest.param("192.88.99.1", id="S31 6to4 relay"),
        pytest.param("224.0.0.1", id="S31 multicast"),
        pytest.param("239.255.255.255", id="S31 multicast end"),
        pytest.param("240.0.0.1", id="S31 reserved"),
        pytest.param("255.255.255.255", id="S31 broadcast"),
        pytest.param("ff02::1", id="multicast 6"),
        pytest.param("2001:db8::1", id="documentation"),
        pytest.param("::ffff:0:127.0.0.1", id="translated"),
    ],
)
def test_not_public(address: str) -> None:
    assert not is_public(ip_address(address))
    with pytest.raises(AddressRefused):
        answering(address).addresses("files.example.org", 443)
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(AddressRefused):
        NEVER.check(f"http://{literal}/clips.zip")


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "172.32.0.1",
        "100.128.0.1",
        "2606:4700:4700::1111",
        "2a00:1450:4001:800::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://127.1/", id="S2"),
        pytest.param("http://127.0.1/", id="S3"),
        pytest.param("http://0177.0.0.1/", id="S5 octal"),
        pytest.param("http://0x7f.0.0.1/", id="S6 hex"),
        pytest.param("http://0x7f000001/", id="S7 hex"),
        pytest.param("http://2130706433/", id="S8 decimal"),
        pytest.param("http://017700000001/", id="S9 octal"),
        pytest.param("http://0/", id="S10"),
        pytest.param("http://00.0.0.0/", id="S12"),
        pytest.param("http://１２７.0.0.1/", id="S13 fullwidth"),
        pytest.param("http://①②⑦.⓪.⓪.①/", id="S13 circled"),
        pytest.param("http://127。0。0。1/", id="S14 ideographic dots"),
        pytest.param("http://[fe80::1%25lo]/", id="S26 scope"),
        pytest.param("http://0251.0376.0251.0376/", id="S30 octal"),
        pytest.param("http://2852039166/", id="S30 decimal"),
        pytest.param("http://127.0.0.1:80\\@example.com/", id="S35 backslash"),
        pytest.param("http://example.com\\@127.0.0.1/", id="S35 backslash, other way"),
        pytest.param("http://a@127.0.0.1/", id="S35 userinfo"),
        pytest.param("http://example.com:@127.0.0.1/", id="S35 userinfo, other way"),
        pytest.param("http://exa\tmple.com/", id="S36 tab"),
        pytest.param("http://example.com/\r\nX-Evil: 1", id="S36 CRLF"),
        pytest.param("http://example.com/a\nb", id="S36 LF"),
        pytest.param("http://example.com/\x00", id="S36 NUL"),
        pytest.param("http://example.com/a b", id="S36 space"),
        pytest.param(" http://example.com/", id="S36 leading space"),
        pytest.param("http://127.0.0.1%00.example.com/", id="S36 %00 host"),
        pytest.param("http://%31%32%37.0.0.1/", id="S36 escaped host"),
        pytest.param("http://[::1]x.example.com/", id="S36 trailing name"),
        pytest.param("file:///etc/passwd", id="S37 file"),
        pytest.param("ftp://example.com/", id="S37 ftp"),
        pytest.param("gopher://example.com/", id="S37 gopher"),
        pytest.param("data:application/zip;base64,UEsFBg==", id="S37 data"),
        pytest.param("jar:http://example.com!/", id="S37 jar"),
        pytest.param("unix:/var/run/docker.sock", id="S37 unix"),
        pytest.param("http+unix://%2Fvar%2Frun%2Fdocker.sock/", id="S37 http+unix"),
        pytest.param("//example.com/clips.zip", id="S37 no scheme"),
        pytest.param("http:127.0.0.1", id="S37 no slashes"),
        pytest.param("http://", id="no host"),
        pytest.param("http:///clips.zip", id="empty host"),
        pytest.param("", id="empty"),
        pytest.param("clips.zip", id="a file name"),
        pytest.param("http://example.com:22/", id="S38 ssh"),
        pytest.param("http://example.com:25/", id="S38 smtp"),
        pytest.param("http://example.com:6379/", id="S38 redis"),
        pytest.param("http://example.com:0/", id="S38 zero"),
        pytest.param("http://example.com:99999/", id="S38 out of range"),
        pytest.param("http://example.com:0080/", id="S38 leading zeros"),
        pytest.param("http://example.com:/", id="S38 empty"),
        pytest.param("http://example.com:80:80/", id="S38 two"),
        pytest.param("https://u:p@example.com/", id="S39"),
        pytest.param("http://-bad.example.com/", id="label"),
        pytest.param("http://a..example.com/", id="empty label"),
        pytest.param(f"http://{'a' * 64}.example.com/", id="long label"),
        pytest.param("http://example.com/" + "a" * 9000, id="long"),
    ],
)
def test_refused_urls(url: str) -> None:
    with pytest.raises(UrlRefused):
        NEVER.check(url)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "ⓛocalhost", socket.gethostname()]
)
def test_names_of_this_machine(host: str) -> None:
    policy = FetchPolicy.allowing([])
    target = policy.check(f"http://{host}/")
    with pytest.raises(AddressRefused):
        policy.addresses(target.host, target.port)


def test_own_address_is_known() -> None:
    assert is_own(ip_address("127.0.0.1"))
    assert not is_own(ip_address("192.0.2.1"))


@pytest.mark.parametrize(
    "mixed",
    [
        ("8.8.8.8", "127.0.0.1"),
        ("127.0.0.1", "8.8.8.8"),
        ("2606:4700::1", "8.8.8.8", "fd00::1"),
    ],
)
def test_one_bad_address_refuses_the_host(mixed: tuple[str, ...]) -> None:
    """S32."""
    with pytest.raises(AddressRefused):
        answering(*mixed).addresses("files.example.org", 443)


def test_unknown_and_inside_read_the_same() -> None:
    """A stranger can't tell which names exist inside."""

    def unknown(host: str, port: int) -> Sequence[IPAddress]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    texts = []
    for policy in (answering("10.1.2.3"), FetchPolicy.allowing([], resolver=unknown), answering()):
        with pytest.raises(AddressRefused) as caught:
            policy.addresses("db.internal", 80)
        texts.append(str(caught.value))
    assert len(set(texts)) == 1
    assert "10.1" not in texts[0]


class TestAllowed:
    @pytest.mark.parametrize(
        ("entry", "host", "address", "allowed"),
        [
            pytest.param("minio.internal", "minio.internal", "10.0.0.5", True, id="name"),
            pytest.param("MinIO.internal.", "minio.internal", "10.0.0.5", True, id="spelling"),
            pytest.param("minio.internal", "db.internal", "10.0.0.5", False, id="other name"),
            pytest.param("10.0.0.0/24", "db.internal", "10.0.0.5", True, id="network"),
            pytest.param("10.0.0.0/24", "db.internal", "10.0.1.5", False, id="other network"),
            pytest.param("10.0.0.5", "db.internal", "::ffff:10.0.0.5", True, id="mapped"),
            pytest.param("fd00::/8", "db.internal", "fd00::1", True, id="IPv6"),
            pytest.param("[::1]", "localhost", "::1", True, id="IPv6 address"),
        ],
    )
    def test_list(self, entry: str, host: str, address: str, allowed: bool) -> None:
        policy = FetchPolicy.allowing([entry], resolver=lambda _host, _port: [ip_address(address)])
        if allowed:
            assert len(policy.addresses(host, 80)) == 1
        else:
            with pytest.raises(AddressRefused):
                policy.addresses(host, 80)

    def test_slip_of_the_pen(self) -> None:
        with pytest.raises(ValueError, match="host bits"):
            FetchPolicy.allowing(["10.0.0.5/8"])

    def test_extra_port(self) -> None:
        policy = FetchPolicy.allowing([], [8443])
        assert policy.check("https://example.com:8443/").port == 8443
        with pytest.raises(UrlRefused, match="8444"):
            policy.check("https://example.com:8444/")


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("HTTP://Example.COM", "http://example.com/"),
        ("http://example.com#@127.0.0.1:22/", "http://example.com/"),
        ("https://example.com./a/b.zip?x=1&y=%20#part", "https://example.com/a/b.zip?x=1&y=%20"),
        ("https://example.com:443/a", "https://example.com/a"),
        ("http://example.com:443/a", "http://example.com:443/a"),
        ("https://bücher.example/ä.zip", "https://xn--bcher-kva.example/%C3%A4.zip"),
        ("https://example.com?x", "https://example.com/?x"),
        ("https://[2606:4700::1111]/a", "https://[2606:4700::1111]/a"),
        ("https://my_bucket.s3.example.com/a+b", "https://my_bucket.s3.example.com/a+b"),
    ],
)
def test_how_urls_are_read(url: str, read: str) -> None:
    assert NEVER.check(url).url == read


def test_system_resolver_knows_this_machine() -> None:
    assert ip_address("127.0.0.1") in system_resolver("localhost", 80)
