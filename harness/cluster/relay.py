"""Relays in front of the ports of nodes."""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

from harness.cluster.node import HOST

_CHUNK = 256 << 10


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128


class Relay:
    """Forwards connections on its own port to another port on loopback, in both directions.

    Each connection has a thread, and lasts until one side closes it.
    """

    def __init__(self, target: int) -> None:
        """Listen on a free port, which is ``port``."""
        self.target = target
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    relay.serve(self.request)

        self._server = _Server((HOST, 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def serve(self, client: socket.socket) -> None:
        """Serve one connection until it is closed.  Raises `OSError` if it fails."""
        with socket.create_connection((HOST, self.target)) as node:
            self.forward(client, node)

    def forward(
        self, client: socket.socket, node: socket.socket, passes: Callable[[], bool] = lambda: True
    ) -> None:
        """Forward data in both directions; drop it while *passes* returns False."""
        with self._lock:
            self._open |= {client, node}
        try:
            for data, sink in _received(client, node):
                if passes():
                    sink.sendall(data)
        finally:
            with self._lock:
                self._open -= {client, node}

    def close_connections(self) -> None:
        """Close all connections."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, and close all connections."""
        self._server.shutdown()
        self._thread.join()
        self.close_connections()
        self._server.server_close()


def _received(one: socket.socket, other: socket.socket) -> Iterator[tuple[bytes, socket.socket]]:
    """Yield data from either socket, with the socket to send it to, until one is closed."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(one, selectors.EVENT_READ, other)
        waiting.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in waiting.select():
                source = cast(Any, key.fileobj)
                while (data := _read(source)) is not None:
                    if not data:
                        return
                    yield data, key.data


def _read(source: socket.socket) -> bytes | None:
    """Return the available data, empty at the end of the stream; None if there is none.

    With TLS, data may be buffered although the socket is not readable, and vice versa.
    """
    source.setblocking(False)
    try:
        return source.recv(_CHUNK)
    except (BlockingIOError, ssl.SSLWantReadError):
        return None
    finally:
        source.setblocking(True)
