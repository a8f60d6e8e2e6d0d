"""Addresses, and every spelling of internal ones."""

from __future__ import annotations

import ipaddress

import pytest
from samserve.bridge.fetching import DownloadFailed, Fetcher, FetchSettings, UrlNotAllowed
from samserve.bridge.fetching.addresses import AddressRules

PUBLIC = ["8.8.8.8", "1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"]
INTERNAL = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.255.0.9", "169.254.1.1"),
    *("172.16.0.1", "172.31.255.255", "192.168.1.1", "192.0.2.1", "198.18.0.1", "203.0.113.1"),
    *("224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
    # With an IPv4 address inside: mapped, compatible, NAT64, 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::808:808"),
    *("64:ff9b:1::1", "2002:7f00:1::", "2001::1"),
]
METADATA = [
    *("169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    *("fd00:ec2::254", "fd20:ce::254", "::ffff:169.254.169.254"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert AddressRules().allowed(address) == address


@pytest.mark.parametrize("address", INTERNAL + METADATA)
def test_internal_addresses_are_not_allowed(address: str) -> None:
    assert AddressRules().allowed(address) is None


@pytest.mark.parametrize("address", ["fe80::1%eth0", "2606:4700::1%1", "x", "", "8.8.8.8/32"])
def test_what_is_no_plain_address_is_not_allowed(address: str) -> None:
    assert AddressRules((ipaddress.ip_network("::/0"),)).allowed(address) is None


def test_allowed_networks_allow_their_addresses_only() -> None:
    rules = AddressRules((ipaddress.ip_network("10.2.0.0/16"), ipaddress.ip_network("fd12::/64")))

    allowed = [
        each for each in ("10.2.255.1", "10.3.0.1", "fd12::1", "fd13::1") if rules.allowed(each)
    ]

    assert allowed == ["10.2.255.1", "fd12::1"]


def test_mapped_address_is_the_ipv4_address() -> None:
    rules = AddressRules((ipaddress.ip_network("10.2.0.0/16"),))

    assert rules.allowed("::ffff:8.8.8.8") == "8.8.8.8"
    assert rules.allowed("::ffff:10.2.0.1") == "10.2.0.1"


def test_nat64_needs_its_network_and_an_allowed_ipv4_address() -> None:
    rules = AddressRules((ipaddress.ip_network("64:ff9b::/96"),))

    assert rules.allowed("64:ff9b::808:808") == "64:ff9b::808:808"
    assert rules.allowed("64:ff9b::a9fe:a9fe") is None


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "::1", "fd12::1", "8.8.8.8"])
def test_trusted_server_may_have_a_private_address(address: str) -> None:
    assert AddressRules().allowed(address, trusted=True) == address


@pytest.mark.parametrize("address", [*METADATA, "0.0.0.0", "224.0.0.1", "fe80::1", "::"])
def test_trusted_server_has_no_address_of_metadata_or_link_local(address: str) -> None:
    assert AddressRules().allowed(address, trusted=True) is None


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001"),
        *("0", "0.0.0.0", "localhost", "LOCALHOST", "localhost.", "127。0。0。1", "①27.0.0.1"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:7f00:0001]"),
        *("169.254.169.254", "2852039166", "0xa9fea9fe", "169.254.43518", "[fd00:ec2::254]"),
        *("10.0.0.1", "192.168.0.1", "[fe80::1]", "[64:ff9b::7f00:1]", "[::127.0.0.1]"),
    ],
)
async def test_every_spelling_of_an_internal_address_is_refused(host: str) -> None:
    fetcher = Fetcher(FetchSettings(allowed_ports="*"))

    # Some systems do not resolve the unusual spellings; no connection is made either way.
    with pytest.raises((UrlNotAllowed, DownloadFailed)) as caught:
        await fetcher.fetch(f"http://{host}:9/image.png")

    fetcher.close()
    text = caught.value.message
    assert "not public" in text or "cannot be resolved" in text or "not a URL" in text
