"""Network addresses: parses and formats hosts and ports, and opens listeners."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
from contextlib import ExitStack

ANY_PORT = 0

_MAX_PORT = (1 << 16) - 1
_WILDCARD_V6, _WILDCARD_V4 = "::", "0.0.0.0"  # noqa: S104 - only compared with settings
# Schemes that gRPC resolves itself; the rest of such a target is not checked here.
_GRPC_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_TLS_SCHEMES = ("https", "rediss", "valkeys", "grpcs")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_NO_HOST = re.compile(r"[\s/\\,@?#\[\]\x00-\x20\x7f]|[^\x00-\x7f]")
# Another program may take the port of one family while the other is being opened.
_ATTEMPTS = 10


def join(host: str, port: int | str) -> str:
    """Return ``HOST:PORT``, with an IPv6 address in brackets."""
    bare = host.removeprefix("[").removesuffix("]")
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def split(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``; an IPv6 address must be in brackets, which are not part of the host.

    Raises ``ValueError`` with a text that states the expected form.
    """
    _reject_scheme(text)
    host, colon, port = text.rpartition(":")
    if _is_ipv6(text) or _is_ipv6(host):
        # The last part may be a port or belong to the address; a decimal number is a port.
        right = f"[{host}]:{port}" if _is_ipv6(host) and port.isdecimal() else f"[{text}]:PORT"
        raise ValueError(f"{text!r}: an IPv6 address must be in brackets: {right}")
    if not colon or not host or text.endswith("]"):
        raise ValueError(f"{text!r}: expected HOST:PORT, a host and a port")
    number = _port(text, port)
    return parse_host(host), number


def parse_host(text: str) -> str:
    """Parse a name or an address without a port; the brackets of an IPv6 address are removed.

    Raises ``ValueError`` with a text that states the expected form.
    """
    _reject_scheme(text)
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare or bare != text:
        if not _is_ipv6(bare):
            raise ValueError(f"{text!r}: expected a host without a port")
        # The canonical form, as nodes and resolvers write it, so that one machine has one name.
        return str(ipaddress.ip_address(bare))
    if not bare:
        raise ValueError("expected a host; :: stands for every address of this machine")
    if _NO_HOST.search(bare):
        raise ValueError(f"{text!r}: is neither a host name nor an address")
    return bare


def parse_target(text: str) -> str:
    """Parse the target of a gRPC client: ``HOST:PORT``, or a URI that gRPC resolves.

    Raises ``ValueError`` with a text that states the expected form.
    """
    scheme, colon, _ = text.partition(":")
    if not text.isprintable() or " " in text or not text.isascii():
        raise ValueError(f"{text!r}: expected HOST:PORT")
    if colon and scheme in _GRPC_SCHEMES:
        return text
    return join(*split(text))


def parse_endpoint(text: str) -> str:
    """Check the URL of a receiver: ``http://HOST:PORT``, ``https://HOST:PORT`` or empty.

    Raises ``ValueError`` with a text that states the expected form.
    """
    match = _SCHEME.fullmatch(text)
    if text and (match is None or match[1] not in ("http", "https")):
        raise ValueError("expected http://HOST:PORT, or https://HOST:PORT for TLS")
    if match is not None:
        split(match[2].rstrip("/"))
    return text


def parse_hosts(text: str) -> tuple[tuple[str, int], ...]:
    """Parse ``HOST:PORT,...``; IPv6 addresses must be in brackets.  Raises ``ValueError``."""
    return tuple(split(part.strip()) for part in text.split(",") if part.strip())


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a listener on *host*, a name or an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def reachable_host(host: str) -> str:
    """Return the address at which this machine reaches its own listener on *host*.

    Connections to ``::`` fail where IPv6 is disabled, as in most containers; a listener on it
    always accepts IPv4.
    """
    return "127.0.0.1" if host in (_WILDCARD_V6, _WILDCARD_V4) else host


def reachable_url(url: str) -> str:
    """Return ``SCHEME://HOST:PORT`` of a listener with its `reachable_host`."""
    scheme, _, address = url.partition("://")
    host, port = split(address)
    return f"{scheme}://{join(reachable_host(host), port)}"


def is_local_target(target: str) -> bool:
    """Return whether the target of a gRPC client is certainly on this machine."""
    scheme, _, rest = target.partition(":")
    if scheme in ("unix", "unix-abstract"):
        return True
    address = rest if scheme in ("dns", "ipv4", "ipv6") else target
    # With an authority, `dns://SERVER/NAME`, another server resolves the name.
    host, _, port = address.removeprefix("///").rpartition(":")
    return is_loopback(host if port.isdecimal() else address.removeprefix("///"))


def listen(host: str, port: int) -> list[socket.socket]:
    """Open TCP listeners on every address of *host*, all on one port.

    `ANY_PORT` selects a free port.  ``::`` accepts IPv4 and IPv6 on one socket, and only IPv4 where
    the system has no IPv6.  Raises ``OSError``; then no listener is open.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return _listen_on_all(host, port)
        except OSError as error:
            conflict = error.errno == errno.EADDRINUSE and port == ANY_PORT
            if not conflict or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returns or raises")


def error_reason(error: OSError) -> str:
    """Return the system's text for an error, without the address that `socket` adds."""
    if isinstance(error, socket.gaierror) or not error.errno:
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _listen_on_all(host: str, port: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    with ExitStack() as stack:
        for family, address in _addresses(host):
            both = address == _WILDCARD_V6
            opened = socket.create_server((address, port), family=family, dualstack_ipv6=both)
            sockets.append(stack.enter_context(opened))
            port = opened.getsockname()[1]
        stack.pop_all()
    return sockets


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    """Resolve a host to its addresses, each once, of the families that this system supports."""
    bare = host.strip("[]")
    if bare == _WILDCARD_V6 and not socket.has_dualstack_ipv6():
        bare = _WILDCARD_V4
    found = socket.getaddrinfo(bare, None, type=socket.SOCK_STREAM)
    addresses = {(family, str(address[0])): None for family, _, _, _, address in found}
    return list(addresses)


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) <= _MAX_PORT):
        raise ValueError(f"{text!r}: the port must be a number from 1 to {_MAX_PORT}")
    return int(port)


def _reject_scheme(text: str) -> None:
    match = _SCHEME.fullmatch(text)
    if match is not None:
        # Only the host is repeated: the rest of a URL may contain a password.
        address = re.split(r"[/?#]", match[2], maxsplit=1)[0].rpartition("@")[2]
        hint = "; TLS is a separate setting" if match[1].lower() in _TLS_SCHEMES else ""
        raise ValueError(f"is a URL: write {address or 'HOST:PORT'} instead{hint}")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
