"""Addresses that the fetcher may connect to.

The table is made from IANA's registries of special-purpose addresses (RFC 6890), so that the result
does not depend on the version of Python, whose `is_global` has changed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from samserve.bridge.fetching.settings import IpNetwork

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; Linux connects to itself
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by carriers; 100.100.100.200: metadata of Alibaba Cloud
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # the platform service of Azure, at a public address
        "169.254.0.0/16",  # link-local; 169.254.169.254: metadata of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192: metadata of Oracle Cloud
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which contains an IPv4 address
        "3fff::/20",  # documentation
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# Never an address of a server that an operator would configure.
_NEVER_TRUSTED = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4"),
        *("100.100.100.200/32", "192.0.0.192/32", "fe80::/10", "ff00::/8", "::/128"),
        *("fd00:ec2::254/128", "fd20:ce::254/128"),  # metadata of AWS and of Google Cloud
    )
)


class AddressRules:
    """Decides about addresses: public ones are allowed, others only within *networks*."""

    def __init__(self, networks: Sequence[IpNetwork] = ()) -> None:
        self._networks = tuple(networks)

    def allowed(self, text: str, *, trusted: bool = False) -> str | None:
        """Return the address to connect to, None if it is not allowed.

        An IPv4 address inside an IPv6 one (mapped, or of NAT64) must be allowed itself.  The
        address of a *trusted* server may be a private one, or one of loopback.
        """
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address):
            if address.scope_id is not None:
                return None
            if address.ipv4_mapped is not None:
                address = address.ipv4_mapped
        checked: list[IpAddress] = [address]
        if address in _NAT64:
            checked.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
        return str(address) if all(self._allowed(each, trusted) for each in checked) else None

    def _allowed(self, address: IpAddress, trusted: bool) -> bool:
        if _within(address, self._networks) or is_public(address):
            return True
        return trusted and not _within(address, _NEVER_TRUSTED)


def is_public(address: IpAddress) -> bool:
    """Return whether an address belongs to no special-purpose network."""
    if isinstance(address, ipaddress.IPv4Address):
        return not _within(address, _NOT_PUBLIC_V4)
    return address in _PUBLIC_V6 and not _within(address, _NOT_PUBLIC_V6)


def _within(address: IpAddress, networks: Iterable[IpNetwork]) -> bool:
    # An address of the other version is in no network.
    return any(address in network for network in networks)
