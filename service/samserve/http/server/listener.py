"""The listener: accepts connections, up to a limit, over TLS if there is a certificate."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import structlog

from samserve.errors import Unavailable
from samserve.http.server.connection import Application, Connection, ConnectionLimits
from samserve.http.server.tls import Certificate, TlsContexts
from samserve.system import addresses

_ACCEPT_PAUSE_S = 0.1
# As in gRPC, an excess of up to this multiple gets an error with a reason.
_HEADER_HEADROOM = 2


class Listening(Protocol):
    """The settings of a listener and its connections; see `HttpSettings`."""

    @property
    def host(self) -> str:
        """The address."""

    @property
    def port(self) -> int:
        """The port; 0 chooses a free one."""

    @property
    def max_connections(self) -> int:
        """Maximum open connections."""

    @property
    def header_timeout_s(self) -> float:
        """Maximum time to receive the headers of a request."""

    @property
    def idle_timeout_s(self) -> float:
        """Time after which a connection without requests is closed."""


class Transfers(Protocol):
    """The settings that all listeners of a process share; see `ServerSettings`."""

    @property
    def max_metadata_bytes(self) -> int:
        """Maximum bytes of the headers of a request."""

    @property
    def handshake_timeout_s(self) -> float:
        """Maximum time of the TLS handshake."""

    @property
    def send_timeout_s(self) -> float:
        """Maximum time for a client to accept a response."""

    @property
    def grace_period_s(self) -> float:
        """Maximum time for requests in flight at shutdown."""


class HttpListener:
    """A bound listener; `serving` runs it."""

    def __init__(
        self,
        app: Application,
        settings: Listening,
        server: Transfers,
        certificate: Certificate | None = None,
    ) -> None:
        """Listen; with *certificate* over TLS only.  Raises `Unavailable`."""
        self._app = app
        self._server = server
        self._max_connections = settings.max_connections
        self._limits = ConnectionLimits(
            _HEADER_HEADROOM * server.max_metadata_bytes,
            settings.header_timeout_s,
            settings.idle_timeout_s,
            server.send_timeout_s + 1,
        )
        self._tls = None if certificate is None else TlsContexts(certificate)
        self._connections: set[Connection] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._closed = asyncio.Event()
        self._closed.set()
        self._host = settings.host
        self._sockets = _listen(settings.host, settings.port)
        self.port = int(self._sockets[0].getsockname()[1])

    @property
    def address(self) -> str:
        """The URL of the listener."""
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://{addresses.join(self._host, self.port)}"

    def open_connections(self) -> int:
        """Return the number of connections, with those in their handshake."""
        return len(self._connections) + len(self._handshakes)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Accept connections while the block runs; then let calls in flight end."""
        tasks = [asyncio.create_task(self._accept(each)) for each in self._sockets]
        try:
            yield
        finally:
            for task in (*tasks, *self._handshakes):
                task.cancel()
            await asyncio.gather(*tasks, *self._handshakes, return_exceptions=True)
            for each in self._sockets:
                each.close()
            await self._stop()

    async def _stop(self) -> None:
        for connection in list(self._connections):
            connection.stop()
        try:
            async with asyncio.timeout(self._server.grace_period_s):
                await self._closed.wait()
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            await self._closed.wait()

    async def _accept(self, listening: socket.socket) -> None:
        while True:
            await _readable(listening)
            try:
                opened, _ = listening.accept()
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                # Such as too many open files; others may be closed soon.
                reason = addresses.error_reason(error)
                structlog.get_logger("samserve.http").warning("accept failed", reason=reason)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            if self.open_connections() >= self._max_connections:
                opened.close()
                continue
            opened.setblocking(False)
            task = asyncio.create_task(self._connect(opened))
            self._handshakes.add(task)
            task.add_done_callback(partial(self._connected, opened))

    def _connected(self, opened: socket.socket, task: asyncio.Task[None]) -> None:
        self._handshakes.discard(task)
        if task.cancelled():
            # The listener stops, perhaps before the task has begun.
            opened.close()

    async def _connect(self, opened: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        # A response in two parts would else wait for the client's acknowledgement of the first.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        make = partial(Connection, self._app, self._limits, self._lost)
        try:
            if self._tls is None:
                _, connection = await loop.connect_accepted_socket(make, opened)
            else:
                _, connection = await loop.connect_accepted_socket(
                    make,
                    opened,
                    ssl=self._tls.current(),
                    ssl_handshake_timeout=self._server.handshake_timeout_s,
                    ssl_shutdown_timeout=self._limits.header_timeout_s,
                )
        except (OSError, ssl.SSLError):
            # The client does not speak TLS, or has no accepted certificate, or is gone.
            opened.close()
            return
        if not connection.lost:
            self._connections.add(connection)
            self._closed.clear()

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._closed.set()


async def _readable(listening: socket.socket) -> None:
    """Wait for a connection; unlike ``loop.sock_accept``, a cancellation cannot lose one."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(listening, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(listening)


def _listen(host: str, port: int) -> list[socket.socket]:
    try:
        opened = addresses.listen(host, port)
    except OSError as error:
        reason = addresses.error_reason(error)
        raise Unavailable(f"cannot listen on {addresses.join(host, port)}: {reason}") from error
    for each in opened:
        each.setblocking(False)
    return opened
