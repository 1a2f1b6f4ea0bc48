"""Which IP addresses are on the public internet.

Python's ``is_global`` is not the answer: it calls public what leads inside (IPv4 embedded in IPv6,
site-local, 6to4 relays, multicast; `spec/reliability.md` 0.9). An address counts as public when
``is_global`` agrees, no network of `NOT_PUBLIC` holds it, and every IPv4 address that it embeds
is public too.
"""

import socket
from collections.abc import Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_network,
)
from typing import Final

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

NOT_PUBLIC: Final[tuple[IPNetwork, ...]] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network; 0.0.0.0 connects to ourselves
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT, also cloud metadata
            "127.0.0.0/8",
            "169.254.0.0/16",  # link-local, cloud metadata
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
            "::/96",  # unspecified, loopback, IPv4-compatible
            "64:ff9b:1::/48",  # NAT64 inside an organisation
            "100::/64",  # discard
            "2001::/23",  # protocol assignments, Teredo
            "2001:db8::/32",
            "3fff::/20",  # documentation
            "5f00::/16",  # segment routing
            "fc00::/7",  # unique local
            "fe80::/10",
            "fec0::/10",  # site-local
            "ff00::/8",
        ),
    )
)


def is_public(address: IPAddress) -> bool:
    """Whether a stranger's URL may lead to ``address``."""
    if not address.is_global or address.is_multicast:
        return False
    if any(address in network for network in NOT_PUBLIC if network.version == address.version):
        return False
    return all(is_public(inner) for inner in _embedded(address))


def _embedded(address: IPAddress) -> Iterator[IPv4Address]:
    """IPv4 addresses that a gateway on the way may turn an IPv6 address into."""
    if not isinstance(address, IPv6Address):
        return
    value = int(address)
    if address.ipv4_mapped is not None:
        yield address.ipv4_mapped
    if address in _NAT64:
        yield IPv4Address(value & 0xFFFF_FFFF)
    if address in _SIX_TO_FOUR:
        yield IPv4Address(value >> 80 & 0xFFFF_FFFF)


_NAT64: Final = IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR: Final = IPv6Network("2002::/16")


def unmapped(address: IPAddress) -> IPAddress:
    """``::ffff:a.b.c.d`` as the IPv4 address that it is to the socket layer."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_own(address: IPAddress) -> bool:
    """Whether ``address`` is one of this machine's, also a public one. Sends nothing.

    For a destination of its own, the kernel answers with the same address as the source.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False  # no route there at all; connecting will say so
        return bool(probe.getsockname()[0] == str(address))
