"""Cutting nodes off from each other: relays before the ports of the cluster bus."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Sequence
from typing import Self

from harness.cluster.node import HOST, Node
from harness.cluster.ports import BUS_OFFSET

# A message of the cluster bus has the id of its sender here, in the versions that there are.
_SENDER = slice(40, 80)
_CHUNK = 64 << 10


class Bus:
    """The cluster bus of all nodes: ``Cluster(bus=bus)``; to be entered before the cluster.

    Nodes connect to each other through relays, which pass all on until `cut_off`.
    """

    def __init__(self) -> None:
        self._relays: list[_Relay] = []
        self._away_ids: frozenset[str] = frozenset()
        self._away_ports: frozenset[int] = frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays:
            relay.close()

    def announce(self, node_port: int) -> int:
        """Put a relay before the bus of a node, and return the relay's port."""
        relay = _Relay(self, node_port + BUS_OFFSET)
        self._relays.append(relay)
        return relay.port

    def cut_off(self, nodes: Sequence[Node]) -> None:
        """Lose all that these nodes and the others say to each other, as a broken network does."""
        self._away_ids = frozenset(node.id for node in nodes)
        self._away_ports = frozenset(node.port + BUS_OFFSET for node in nodes)

    def heal(self) -> None:
        """Let all talk to each other again."""
        self._away_ids, self._away_ports = frozenset(), frozenset()
        for relay in self._relays:
            # Of some of them messages are missing.
            relay.close_connections()

    def loses(self, sender: str, port: int) -> bool:
        """Tell whether what a node sends to the bus of another, or is answered, is lost."""
        return (sender in self._away_ids) != (port in self._away_ports)


class _Relay:
    """Passes on what comes to a port of its own to the bus of one node, and the answers."""

    def __init__(self, bus: Bus, target: int) -> None:
        self._bus, self._target = bus, target
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        relay = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    relay.serve(self.request)

        self._server = socketserver.ThreadingTCPServer((HOST, 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def serve(self, caller: socket.socket) -> None:
        """Serve one connection to its end."""
        with socket.create_connection((HOST, self._target)) as node:
            self._note(caller, node)
            first = _received(caller, _SENDER.stop)
            sender = first[_SENDER].decode("ascii", "replace")
            back = threading.Thread(target=self._pump, args=(node, caller, sender, b""))
            back.start()
            self._pump(caller, node, sender, first)
            back.join()

    def close_connections(self) -> None:
        """Cut all connections; nodes make new ones."""
        with self._lock:
            connections, self._open = self._open, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening, and cut all connections."""
        self._server.shutdown()
        self._thread.join()
        self.close_connections()
        self._server.server_close()

    def _note(self, *connections: socket.socket) -> None:
        with self._lock:
            self._open.update(connections)

    def _pump(self, source: socket.socket, sink: socket.socket, sender: str, data: bytes) -> None:
        with contextlib.suppress(OSError):
            while data := data or source.recv(_CHUNK):
                if not self._bus.loses(sender, self._target):
                    sink.sendall(data)
                data = b""
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source, sink}


def _received(connection: socket.socket, count: int) -> bytes:
    """Read that many bytes, or raise `OSError`."""
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise OSError("the connection has ended")
        data += chunk
    return data
