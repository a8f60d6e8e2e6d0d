"""Settings of the fetcher: the section `fetch`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field

from samserve.settings.section import MIB, Section

ANY = "*"
SCHEMES = ("https", "http", "data")

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_HOST = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]")
_CONTENT_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]+/(?:\*|[a-z0-9!#$&^_.+-]+)")


class FetchSettings(Section):
    """Images by URL: what the bridge may fetch. Each rule holds for the URL and for every redirect.
    Only the servers that the operator configures by URL, such as `label_studio.url`, may have any
    port and a private address without a rule."""

    allowed_schemes: str = "https,http,data"
    """Schemes of URLs, separated by commas: `https`, `http`, and `data` for images in the URL
    itself. A redirect from `https` to `http` is never followed."""
    allowed_hosts: str = ""
    """Hosts, separated by commas, such as `images.example.com`; `*.example.com` stands for every
    name below `example.com`. Empty allows every host with a public address."""
    allowed_ports: str = "443,80"
    """Ports, separated by commas; `*` allows every port."""
    allowed_networks: str = ""
    """Networks with private addresses from which images may be fetched, separated by commas, such
    as `10.20.0.0/16`. Without this rule only public addresses are: not private, loopback,
    link-local, multicast or reserved ones, nor those of the metadata services of clouds."""
    allowed_content_types: str = "image/*,application/octet-stream,binary/octet-stream"
    """Content types of responses and `data:` URLs, separated by commas. Whether the bytes are an
    image is checked by the gateway."""
    max_bytes: int = Field(default=64 * MIB, ge=1)
    """Maximum size of an image in bytes. Compressed responses are rejected."""
    max_redirects: int = Field(default=3, ge=0, le=20)
    """Maximum redirects of a fetch; 0 follows none."""
    timeout_s: float = Field(default=30.0, gt=0)
    """Maximum time in seconds of a fetch, redirects included."""
    idle_timeout_s: float = Field(default=10.0, gt=0)
    """Maximum time in seconds to connect, and without any data."""
    ca_file: Path | None = None
    """File with certificates of authorities, in PEM, that are trusted in addition to the public
    ones."""

    @property
    def schemes(self) -> tuple[str, ...]:
        """The names in `allowed_schemes`."""
        return _names(self.allowed_schemes)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The patterns in `allowed_hosts`."""
        return _names(self.allowed_hosts)

    @property
    def ports(self) -> frozenset[int] | None:
        """The numbers in `allowed_ports`, None for any."""
        names = _names(self.allowed_ports)
        return None if ANY in names else frozenset(int(name) for name in names)

    @property
    def networks(self) -> tuple[IpNetwork, ...]:
        """The networks in `allowed_networks`."""
        return tuple(ipaddress.ip_network(name) for name in _names(self.allowed_networks))

    @property
    def content_types(self) -> tuple[str, ...]:
        """The patterns in `allowed_content_types`."""
        return _names(self.allowed_content_types)

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        for setting, valid, expected in _RULES:
            for name in _names(getattr(self, setting)):
                if not valid(name):
                    yield f"{setting}: {name!r} is not {expected}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for part in text.lower().split(",") if (name := part.strip()))


def _is_port(text: str) -> bool:
    return text == ANY or (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 16)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


_RULES: tuple[tuple[str, Callable[[str], object], str], ...] = (
    ("allowed_schemes", SCHEMES.__contains__, "https, http or data"),
    (
        "allowed_hosts",
        _HOST.fullmatch,
        "a host, an address or *.DOMAIN; ports are a separate rule, and international names are "
        "written as xn--...",
    ),
    ("allowed_ports", _is_port, "a port or *"),
    ("allowed_networks", _is_network, "a network such as 10.20.0.0/16, without bits of hosts"),
    ("allowed_content_types", _CONTENT_TYPE.fullmatch, "a type such as image/png or image/*"),
)
