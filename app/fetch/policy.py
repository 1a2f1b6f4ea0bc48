"""Which URLs may be fetched, and which addresses they may lead to."""

import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import quote

from app.fetch.addresses import IPAddress, IPNetwork, is_own, is_public, unmapped
from app.fetch.errors import AddressRefused, UrlRefused
from app.settings import Settings

DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_URL_CHARS: Final = 8192
"""Presigned URLs reach 2,000; most servers stop at 8 kB."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#\\]*)(?P<path>/[^?#]*)?(?:\?(?P<query>[^#]*))?(?:#.*)?",
    re.IGNORECASE | re.DOTALL,
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@%]+)(?::(?P<port>[1-9]\d{0,4}))?")
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_CONTROL_OR_SPACE = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029]")

# RFC 3986 plus "%", so that what is escaped already stays as it is.
_KEPT_IN_TARGET: Final = "/:?@!$&'()*+,;=-._~%"

Resolver = Callable[[str, int], Sequence[IPAddress]]


@dataclass(frozen=True)
class Target:
    """A URL taken apart once. What is connected, asked for and verified all comes from here, so
    that no second parser can read it otherwise."""

    scheme: str
    host: str
    """Lower case, ASCII (IDNA), no trailing dot; an IPv6 address without brackets."""
    port: int
    path: str
    """Path and query, percent-encoded."""

    @property
    def authority(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"


def system_resolver(host: str, port: int) -> list[IPAddress]:
    """Every address of a name, in the system's order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # A scope ("fe80::1%eth0") only ever belongs to addresses that are refused anyway.
    return [ip_address(str(item[4][0]).partition("%")[0]) for item in found]


@dataclass(frozen=True)
class FetchPolicy:
    """The operator's rules. Without an allow-list, only the public internet."""

    allow_hosts: frozenset[str] = frozenset()
    """Names whose addresses may be private."""
    allow_networks: tuple[IPNetwork, ...] = ()
    """Addresses that may be private."""
    extra_ports: frozenset[int] = frozenset()
    resolver: Resolver = field(default=system_resolver, compare=False)

    @classmethod
    def of(cls, settings: Settings) -> "FetchPolicy":
        return cls.allowing(settings.fetch_allow_private_hosts, settings.fetch_extra_ports)

    @classmethod
    def allowing(
        cls,
        hosts: Sequence[str],
        ports: Sequence[int] = (),
        resolver: Resolver = system_resolver,
    ) -> "FetchPolicy":
        """From a list of host names, addresses and networks."""
        names: set[str] = set()
        networks: list[IPNetwork] = []
        for entry in hosts:
            try:
                networks.append(ip_network(entry.strip("[]")))
            except ValueError:
                if "/" in entry:  # a network with host bits or a slip of the pen, never a name
                    raise
                names.add(entry.lower().rstrip("."))
        return cls(frozenset(names), tuple(networks), frozenset(ports), resolver)

    def check(self, url: str) -> Target:
        """Take a URL apart. Raises `UrlRefused`; looks nothing up, so it may run at submit."""
        if len(url) > MAX_URL_CHARS:
            raise UrlRefused(f"The URL is longer than {MAX_URL_CHARS} characters.")
        if _CONTROL_OR_SPACE.search(url):
            raise UrlRefused("The URL holds spaces or control characters; percent-encode them.")
        match = _URL.fullmatch(url)
        if match is None:
            raise UrlRefused("The URL must begin with http:// or https:// and name a host.")
        authority = match["authority"]
        if "@" in authority:
            raise UrlRefused("The URL holds a user name or password; use a presigned URL instead.")
        parts = _AUTHORITY.fullmatch(authority)
        if parts is None:
            raise UrlRefused("The URL's host or port can't be read.")
        scheme = match["scheme"].lower()
        port = int(parts["port"] or DEFAULT_PORTS[scheme])
        if port not in DEFAULT_PORTS.values() and port not in self.extra_ports:
            raise UrlRefused(f"The URL names port {port}; only 80 and 443 are allowed.")
        host = _normalised(parts["host"])
        target = Target(scheme, host, port, _target_path(match["path"], match["query"]))
        literal = _literal(host)
        if literal is not None:
            self._check_address(host, literal)
        return target

    def addresses(self, host: str, port: int) -> list[IPAddress]:
        """Where ``host`` may be connected: all of its addresses, each one allowed.

        One address that isn't allowed refuses the host (`AddressRefused`): a mixed answer is an
        attempt, not an accident.
        """
        literal = _literal(host)
        if literal is not None:
            found: list[IPAddress] = [literal]
        else:
            try:
                found = list(self.resolver(host, port))
            except (OSError, UnicodeError, ValueError):
                found = []
        if not found:
            raise AddressRefused(host)
        for address in found:
            self._check_address(host, address)
        return [unmapped(address) for address in dict.fromkeys(found)]

    def _check_address(self, host: str, address: IPAddress) -> None:
        plain = unmapped(address)
        allowed = host in self.allow_hosts or any(
            plain in network for network in self.allow_networks if network.version == plain.version
        )
        if not allowed and (not is_public(address) or is_own(address)):
            raise AddressRefused(host)


def _normalised(host: str) -> str:
    """As DNS will be asked: IDNA, lower case. Raises `UrlRefused` for what is neither name nor
    plain address, such as the octal and hexadecimal forms that getaddrinfo would still take."""
    if host.startswith("["):
        try:
            return str(ip_address(host[1:-1]))
        except ValueError:
            raise UrlRefused("The URL's host is not an IPv6 address.") from None
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise UrlRefused("The URL's host is not a valid name.") from None
    labels = name.split(".")
    if not all(map(_LABEL.fullmatch, labels)) or len(name) > 253:
        raise UrlRefused("The URL's host is not a valid name.")
    if _NUMBER.fullmatch(labels[-1]) and _literal(name) is None:
        raise UrlRefused("The URL's host is a number, but not a plain IPv4 address.")
    return name


def _literal(host: str) -> IPAddress | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _target_path(path: str | None, query: str | None) -> str:
    target = path or "/"
    if query is not None:
        target += f"?{query}"
    return quote(target, safe=_KEPT_IN_TARGET)
