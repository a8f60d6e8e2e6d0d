"""URLs that the fetcher may request."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from httpx2 import URL, InvalidURL

from samserve.bridge.fetching.errors import UrlNotAllowed
from samserve.bridge.fetching.settings import FetchSettings

PORTS: Mapping[str, int] = {"https": 443, "http": 80}

_MAX_CHARACTERS = 8192
_NAME = re.compile(r"[a-z0-9._-]+")


@dataclass(frozen=True)
class Target:
    """One request: *url* without a fragment; *host* in lower case, an address without brackets."""

    url: URL
    scheme: str
    host: str
    port: int

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @classmethod
    def parse(cls, text: str, base: URL | None = None) -> Target:
        """Parse a URL, relative to *base* if there is one.  Raises `UrlNotAllowed`."""
        if len(text) > _MAX_CHARACTERS:
            raise UrlNotAllowed(
                f"has {len(text)} characters; at most {_MAX_CHARACTERS} are allowed"
            )
        try:
            url = URL(text) if base is None else base.join(text)
        except (InvalidURL, ValueError):
            raise UrlNotAllowed("is not a URL") from None
        scheme = url.scheme
        if scheme not in PORTS:
            shown = repr(scheme) if re.fullmatch(r"[a-z0-9+.-]{1,20}", scheme) else "this scheme"
            raise UrlNotAllowed(f"{shown} is not supported")
        host = _canonical(url.raw_host.decode("ascii"))
        if not host:
            raise UrlNotAllowed("has no valid host")
        port = PORTS[scheme] if url.port is None else url.port
        if not 0 < port < 1 << 16:
            raise UrlNotAllowed(f"{host}: {port} is not a port")
        if url.userinfo:
            raise UrlNotAllowed(f"{host}: a URL must not contain credentials")
        return cls(url.copy_with(fragment=None), scheme, host, port)


@dataclass(frozen=True)
class TrustedOrigin:
    """A server that the operator configured, as the URL of its root: not from a request.

    It may have any port and a private address.  Only it receives *headers*, such as its token, and
    only until a redirect leads to another origin.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        Target.parse(self.url)

    def is_of(self, target: Target) -> bool:
        """Return whether a request goes to this origin."""
        return Target.parse(self.url).origin == target.origin


class UrlRules:
    """The rules about schemes, hosts and ports."""

    def __init__(self, settings: FetchSettings) -> None:
        self._schemes = settings.schemes
        self._hosts = tuple(
            host if host.startswith("*.") else _canonical(host) for host in settings.hosts
        )
        self._ports = settings.ports

    def check_scheme(self, scheme: str) -> None:
        """Raise `UrlNotAllowed` if a scheme is not allowed."""
        if scheme not in self._schemes:
            raise UrlNotAllowed(f"the scheme {scheme!r} is not allowed (fetch.allowed_schemes)")

    def check(self, target: Target) -> None:
        """Raise `UrlNotAllowed` if a rule forbids the request."""
        self.check_scheme(target.scheme)
        if self._hosts and not any(_matches(target.host, pattern) for pattern in self._hosts):
            raise UrlNotAllowed(f"the host {target.host} is not allowed (fetch.allowed_hosts)")
        if self._ports is not None and target.port not in self._ports:
            raise UrlNotAllowed(
                f"{target.host}: the port {target.port} is not allowed (fetch.allowed_ports)"
            )


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _canonical(host: str) -> str:
    """Return a name in lower case, or an IPv6 address in its shortest form; empty if invalid."""
    name = host.lower().removesuffix(".")
    if _NAME.fullmatch(name):
        return name
    try:
        return "" if "%" in name else str(ipaddress.IPv6Address(name.strip("[]")))
    except ValueError:
        return ""
