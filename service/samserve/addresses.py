"""Addresses of machines, and who can reach them."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether nobody on another machine can reach a listener on *host*, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_hosts(text: str) -> tuple[tuple[str, int], ...]:
    """Read ``HOST:PORT,...``; an IPv6 address stands in brackets.  Raises ``ValueError``."""
    return tuple(_parse_host(part.strip()) for part in text.split(",") if part.strip())


def _parse_host(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{text!r}: expected HOST:PORT")
    return host.strip("[]"), int(port)
