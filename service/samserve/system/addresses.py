"""Addresses of machines: the one place that joins and splits host and port, and opens listeners."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from contextlib import ExitStack

ANY_PORT = 0

_MOST_PORT = (1 << 16) - 1
_WILDCARD_V6, _WILDCARD_V4 = "::", "0.0.0.0"  # noqa: S104 - names of what others choose
# Names that gRPC resolves in its own way; what follows is not for us to check.
_GRPC_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_TLS_SCHEMES = ("https", "rediss", "valkeys", "grpcs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NO_HOST = re.compile(r"[\s/\\,@?#\[\]\x00-\x20\x7f]|[^\x00-\x7f]")
# Another program may take the port of one family while the other is being opened.
_ATTEMPTS = 10


def join(host: str, port: int | str) -> str:
    """Write ``HOST:PORT``, with an IPv6 address in brackets."""
    bare = host.removeprefix("[").removesuffix("]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def split(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; an IPv6 address stands in brackets, which the host comes without.

    Raises ``ValueError``, whose text says what was expected instead.
    """
    _refuse_scheme(text)
    host, colon, port = text.rpartition(":")
    if _is_ipv6(text) or _is_ipv6(host):
        # The last part may be a port or belong to the address; what looks like a port is one.
        right = f"[{host}]:{port}" if _is_ipv6(host) and port.isdecimal() else f"[{text}]:PORT"
        raise ValueError(f"{text!r}: an IPv6 address stands in brackets: {right}")
    if not colon or not host or text.endswith("]"):
        raise ValueError(f"{text!r}: expected HOST:PORT, a host and a port")
    number = _port(text, port)
    return parse_host(host), number


def parse_host(text: str) -> str:
    """Read a name or an address without a port; the brackets of an IPv6 address are taken off.

    Raises ``ValueError``, whose text says what was expected instead.
    """
    _refuse_scheme(text)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare or bare != text:
        if not _is_ipv6(bare):
            raise ValueError(f"{text!r}: expected a host alone, without a port")
        # As nodes and resolvers write it, so that one machine has one name.
        return str(ipaddress.ip_address(bare))
    if not bare:
        raise ValueError("expected a host; :: is every address of this machine")
    if _NO_HOST.search(bare):
        raise ValueError(f"{text!r}: is neither the name of a host nor an address")
    return bare


def parse_target(text: str) -> str:
    """Check what a gRPC client connects to: ``HOST:PORT``, or a name that gRPC resolves.

    Raises ``ValueError``, whose text says what was expected instead.
    """
    scheme, colon, _ = text.partition(":")
    if not text.isprintable() or " " in text or not text.isascii():
        raise ValueError(f"{text!r}: expected HOST:PORT")
    if colon and scheme in _GRPC_SCHEMES:
        return text
    return join(*split(text))


def parse_endpoint(text: str) -> str:
    """Check the URL of a receiver: ``http://HOST:PORT`` or ``https://HOST:PORT``, or nothing.

    Raises ``ValueError``, whose text says what was expected instead.
    """
    match = _SCHEME.fullmatch(text)
    if text and (match is None or match[1] not in ("http", "https")):
        raise ValueError("expected http://HOST:PORT, or https://HOST:PORT for TLS")
    if match is not None:
        split(match[2].rstrip("/"))
    return text


def parse_hosts(text: str) -> tuple[tuple[str, int], ...]:
    """Read ``HOST:PORT,...``; an IPv6 address stands in brackets.  Raises ``ValueError``."""
    return tuple(split(part.strip()) for part in text.split(",") if part.strip())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener on *host*, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def from_here(host: str) -> str:
    """Return the address at which this machine reaches its own listener on *host*.

    ``::`` cannot be connected to where IPv6 is switched off, as in most containers; a listener on
    it takes IPv4 in any case.
    """
    return "127.0.0.1" if host in (_WILDCARD_V6, _WILDCARD_V4) else host


def is_local_target(target: str) -> bool:
    """Whether what a gRPC client connects to is surely on this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    address = rest if scheme in ("dns", "ipv4", "ipv6") else target
    # With an authority, `dns://SERVER/NAME`, another server says where the name leads.
    host, _, port = address.removeprefix("///").rpartition(":")
    return is_loopback(host if port.isdecimal() else address.removeprefix("///"))


def listen(host: str, port: int) -> list[socket.socket]:
    """Open TCP listeners on every address of *host*, all on one port; `ANY_PORT` takes a free one.

    ``::`` takes IPv4 and IPv6 on one socket, and IPv4 alone where the system has no IPv6.  Raises
    ``OSError``; then none is open.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _listen_on_all(host, port)
        except OSError as error:
            lost = error.errno == errno.EADDRINUSE and port == ANY_PORT
            if not lost or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def why(error: OSError) -> str:
    """Return the system's reason in its own words; `socket` adds the address to them."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _listen_on_all(host: str, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    with ExitStack() as held:
        for family, address in _addresses(host):
            both = address == _WILDCARD_V6
            opened = socket.create_server((address, port), family=family, dualstack_ipv6=both)
            sockets.append(held.enter_context(opened))
            port = opened.getsockname()[1]
        held.pop_all()
    return sockets


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Resolve a host to its addresses of this system's families, each once."""
    bare = host.strip("[]")
    if bare == _WILDCARD_V6 and not socket.has_dualstack_ipv6():
        bare = _WILDCARD_V4
    found = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    addresses = {(family, str(place[0])): None for family, _, _, _, place in found}
    return list(addresses)


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) <= _MOST_PORT):
        raise ValueError(f"{text!r}: the port must be a number from 1 to {_MOST_PORT}")
    return int(port)


def _refuse_scheme(text: str) -> None:
    match = _SCHEME.fullmatch(text)
    if match is not None:
        # What else a URL may hold, a password for instance, is not repeated.
        place = re.split(r"[/?#]", match[2], maxsplit=1)[0].rpartition("@")[2]
        hint = "; TLS is a setting of its own" if match[1].lower() in _TLS_SCHEMES else ""
        raise ValueError(f"is a URL: write {place or 'HOST:PORT'} instead{hint}")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
