"""Connections in the clear and with TLS, for `harness.cluster.tls`.

Those with TLS of asyncio close without a word if a handshake fails: a client would not learn that
its certificate is missing, as it does from a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import Callable
from typing import Protocol, Self, TypeVar

_CHUNK = 256 << 10
_HANDSHAKE_S, _FAREWELL_S = 5.0, 1.0
_Done = TypeVar("_Done")


class Stream(Protocol):
    """A connection."""

    async def read(self) -> bytes:
        """Return some bytes, none at the end; raise OSError."""

    async def write(self, data: bytes) -> None:
        """Write all; raise OSError."""


class Plain:
    """A connection in the clear, over a non-blocking socket that the caller closes."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def read(self) -> bytes:
        """Return some bytes, none at the end."""
        return await asyncio.get_running_loop().sock_recv(self._socket, _CHUNK)

    async def write(self, data: bytes) -> None:
        """Write all."""
        await asyncio.get_running_loop().sock_sendall(self._socket, data)


class Secure:
    """The server's side of a connection with TLS; a context manager, which closes the socket."""

    def __init__(self, connection: socket.socket, context: ssl.SSLContext) -> None:
        self._socket = context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    async def handshake(self) -> None:
        """To be done first; if it raises, the client has been told why."""
        try:
            async with asyncio.timeout(_HANDSHAKE_S):
                await self._done(self._socket.do_handshake)
        except ssl.SSLError:
            await self._let_it_hear()
            raise

    async def read(self) -> bytes:
        """Return some bytes, none at the end."""
        return await self._done(functools.partial(self._socket.recv, _CHUNK))

    async def write(self, data: bytes) -> None:
        """Write all."""
        rest = memoryview(data)
        while rest:
            sent = await self._done(functools.partial(self._socket.send, rest))
            rest = rest[sent:]

    async def _let_it_hear(self) -> None:
        """Read on to the end: to close with bytes unread would overtake the alert."""
        self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                while await self.read():
                    pass

    async def _done(self, step: Callable[[], _Done]) -> _Done:
        """Do what the socket may not be ready for yet."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return step()
            except (ssl.SSLWantReadError, BlockingIOError):
                await _called(self._socket, loop.add_reader, loop.remove_reader)
            except ssl.SSLWantWriteError:
                await _called(self._socket, loop.add_writer, loop.remove_writer)


async def pump(source: Stream, sink: Stream) -> None:
    """Pass on until there is no more."""
    while data := await source.read():
        await sink.write(data)


async def _called(
    connection: socket.socket,
    add: Callable[[socket.socket, Callable[[], None]], None],
    remove: Callable[[socket.socket], bool],
) -> None:
    ready = asyncio.Event()
    add(connection, ready.set)
    try:
        await ready.wait()
    finally:
        remove(connection)
