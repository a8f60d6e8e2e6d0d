"""Connections of the fetcher: names are resolved once, and only checked addresses are connected to.

The check is part of the connection, so that an answer of DNS that changes between a check and its
use has no effect.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpcore2

from samserve.bridge.fetching.addresses import AddressRules
from samserve.bridge.fetching.errors import DownloadFailed, UrlNotAllowed

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host, given with a port; raises `OSError`."""

# Resolvers may take seconds; threads of their own keep others free.
_THREADS = 16


class SystemResolver:
    """The resolver of the system, in threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="samserve-resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """See `Resolve`; accepts every spelling of an address that the system accepts."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, _addresses, host, port)
        return list(dict.fromkeys(str(address[0]) for *_, address in found))

    def close(self) -> None:
        """Stop the threads, without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _addresses(host: str, port: int) -> list[tuple[object, object, int, str, tuple[object, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, kind, proto, name, address) for family, kind, proto, name, address in found]


class GuardedNetwork(httpcore2.AsyncNetworkBackend):
    """Network of one request; TLS verifies the name of the URL, which httpcore2 passes on."""

    def __init__(self, rules: AddressRules, resolve: Resolve, *, trusted: bool) -> None:
        self._rules = rules
        self._resolve = resolve
        self._trusted = trusted
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore2
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to the first address that is allowed and reachable.

        Raises `UrlNotAllowed` if none is allowed, `DownloadFailed` if the name is not known.
        """
        name = host.strip("[]")
        try:
            found = await self._resolve(name, port)
        except (OSError, UnicodeError):
            raise DownloadFailed(f"{name}: the name cannot be resolved") from None
        checked = [self._rules.allowed(address, trusted=self._trusted) for address in found]
        allowed = [address for address in checked if address is not None]
        if not allowed:
            raise UrlNotAllowed(f"the address of {name} is not public (fetch.allowed_networks)")
        for address in allowed[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._network.connect_tcp(allowed[-1], port, timeout, local_address)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - the interface of httpcore2
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raise `UrlNotAllowed`: no URL names a socket."""
        raise UrlNotAllowed("sockets of this machine are not allowed")

    async def sleep(self, seconds: float) -> None:
        """Wait, between attempts."""
        await self._network.sleep(seconds)
