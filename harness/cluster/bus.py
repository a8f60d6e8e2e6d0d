"""Cutting nodes off from each other: relays before the ports of the cluster bus."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Self

from harness.cluster.node import HOST, Node
from harness.cluster.ports import BUS_OFFSET
from harness.cluster.relay import Relay

# A message of the cluster bus has the id of its sender here, in the versions that there are.
_SENDER = slice(40, 80)


class Bus:
    """The cluster bus of all nodes: ``Cluster(bus=bus)``; to be entered before the cluster.

    Nodes connect to each other through relays, which pass all on until `cut_off`.
    """

    def __init__(self) -> None:
        self._relays: list[Relay] = []
        self._away_ids: frozenset[str] = frozenset()
        self._away_ports: frozenset[int] = frozenset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays:
            relay.close()

    def announce(self, node_port: int) -> int:
        """Put a relay before the bus of a node, and return the relay's port."""
        relay = _BusRelay(self, node_port + BUS_OFFSET)
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
            # Of some of them messages are missing; nodes make new ones.
            relay.close_connections()

    def loses(self, sender: str, port: int) -> bool:
        """Tell whether what a node sends to the bus of another, or is answered, is lost."""
        return (sender in self._away_ids) != (port in self._away_ports)


class _BusRelay(Relay):
    def __init__(self, bus: Bus, target: int) -> None:
        self._bus = bus
        super().__init__(target)

    def serve(self, caller: socket.socket) -> None:
        # What is peeked at is passed on with the rest.
        first = caller.recv(_SENDER.stop, socket.MSG_PEEK | socket.MSG_WAITALL)
        sender = first[_SENDER].decode("ascii", "replace")
        with socket.create_connection((HOST, self.target)) as node:
            self.pass_on(caller, node, lambda: not self._bus.loses(sender, self.target))
