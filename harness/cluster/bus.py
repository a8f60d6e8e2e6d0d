"""Network partitions: relays in front of the ports of the cluster bus."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Self

from harness.cluster.node import HOST, Node
from harness.cluster.ports import BUS_OFFSET
from harness.cluster.relay import Relay

# The id of the sender in a message of the cluster bus, in all current versions.
_SENDER = slice(40, 80)


class Bus:
    """The cluster bus of all nodes: ``Cluster(bus=bus)``; must be entered before the cluster.

    Nodes connect to each other through relays, which forward everything until `partition`.
    """

    def __init__(self) -> None:
        self._relays: list[Relay] = []
        self._separated_ids: frozenset[str] = frozenset()
        self._separated_ports: frozenset[int] = frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays:
            relay.close()

    def announce(self, node_port: int) -> int:
        """Start a relay in front of the bus of a node, and return its port."""
        relay = _BusRelay(self, node_port + BUS_OFFSET)
        self._relays.append(relay)
        return relay.port

    def partition(self, nodes: Sequence[Node]) -> None:
        """Drop all messages between these nodes and the others, like a network partition."""
        self._separated_ids = frozenset(node.id for node in nodes)
        self._separated_ports = frozenset(node.port + BUS_OFFSET for node in nodes)

    def heal(self) -> None:
        """End the partition."""
        self._separated_ids, self._separated_ports = frozenset(), frozenset()
        for relay in self._relays:
            # Their streams lack dropped messages; nodes open new connections.
            relay.close_connections()

    def drops(self, sender: str, port: int) -> bool:
        """Return whether messages between a sender and the bus at *port* are dropped."""
        return (sender in self._separated_ids) != (port in self._separated_ports)


class _BusRelay(Relay):
    def __init__(self, bus: Bus, target: int) -> None:
        self._bus = bus
        super().__init__(target)

    def serve(self, client: socket.socket) -> None:
        # Peeked bytes are forwarded with the rest.
        first = client.recv(_SENDER.stop, socket.MSG_PEEK | socket.MSG_WAITALL)
        sender = first[_SENDER].decode("ascii", "replace")
        with socket.create_connection((HOST, self.target)) as node:
            self.forward(client, node, lambda: not self._bus.drops(sender, self.target))
