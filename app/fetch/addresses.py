"""Which IP addresses are on the public internet.

Python's ``is_global`` is not the answer: it calls public what leads inside (IPv4 embedded in IPv6,
site-local, 6to4 relays, multicast; `spec/reliability.md` 0.9). An IPv4 address counts as public
when ``is_global`` agrees and no network of `NOT_PUBLIC` holds it; an IPv6 address must be global
unicast as well, or stand for a public IPv4 address.
"""

import socket
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
            "2001::/23",  # protocol assignments, among them Teredo
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: embeds IPv4, and its relays are gone
            "3fff::/20",  # documentation
        ),
    )
)


_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")
_NAT64: Final = IPv6Network("64:ff9b::/96")
"""A gateway turns it into IPv4: how hosts without IPv4 reach most of the internet."""


def is_public(address: IPAddress) -> bool:
    """Whether a stranger's URL may lead to ``address``."""
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST:
            return False
    return address.is_global and not any(
        address in network for network in NOT_PUBLIC if network.version == address.version
    )


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that is connected in the place of this one."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


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
