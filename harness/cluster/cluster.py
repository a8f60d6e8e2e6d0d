"""A cluster of real servers as child processes."""

from __future__ import annotations

import atexit
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self

import redis
from redis.crc import key_slot

from harness.cluster import forming
from harness.cluster.accounts import EVERYTHING, Accounts
from harness.cluster.binaries import Flavour, server_binary
from harness.cluster.bus import Bus
from harness.cluster.errors import NotReadyError, PortTakenError, wait_for
from harness.cluster.node import Node
from harness.cluster.ports import BUS_OFFSET, HIGHEST, Ports
from harness.cluster.resharding import SlotMove
from harness.errors import HarnessError
from harness.triton import processes

READY_TIMEOUT_S = 90.0
MAXMEMORY = 256 << 20

_PORT_ATTEMPTS = 5

Announce = Callable[[int], int]
"""Returns the port to announce to clients for the port of a node: that of a proxy, for example."""


class Cluster:
    """Masters with replicas on loopback; a context manager.  Calls block, with a timeout.

    A node that is killed keeps its data, in its append-only file.  Without it
    (``options={"appendonly": "no"}``, or after `Node.lose_data`), a master that is restarted before
    a failover is empty, and its replicas become empty as well.
    """

    def __init__(  # noqa: PLR0913 - by name
        self,
        masters: int = 3,
        replicas: int = 1,
        flavour: Flavour = "valkey",
        *,
        maxmemory: int = MAXMEMORY,
        options: Mapping[str, str] | None = None,
        user: str | None = None,
        password: str | None = None,
        rules: str = EVERYTHING,
        announce: Announce | None = None,
        bus: Bus | None = None,
        port: int = 0,
    ) -> None:
        """Define the cluster; `start` starts it.

        ``replicas`` is the number per master, ``maxmemory`` is in bytes per node, ``options`` are
        further directives for every node.  With a ``password``, clients must send it, with ``user``
        unless it is that of the default user; ``rules`` are the user's rules for ACL SETUSER.
        A ``bus`` allows network partitions.
        ``port`` is that of the first node, the others follow; 0 selects free ports.
        """
        if masters < 1 or replicas < 0:
            raise HarnessError(f"invalid cluster: {masters} masters with {replicas} replicas each")
        self.flavour: Flavour = flavour
        self.nodes: tuple[Node, ...] = ()
        """All nodes; those that were masters initially come first."""
        self._masters, self._replicas = masters, replicas
        self._maxmemory, self._options = maxmemory, dict(options or {})
        self._accounts = Accounts(user, password, rules)
        self._announce: Announce = announce or (lambda port: port)
        self._bus_port = _own_bus_port if bus is None else bus.announce
        self._port, self._reserved = port, Ports()
        self._folder: Path | None = None
        # Also nodes that failed to start.
        self._started: list[Node] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Return when the cluster serves all slots and its replicas are synchronized."""
        if self._folder is not None:
            raise HarnessError("the cluster is started already")
        self._folder = Path(tempfile.mkdtemp(prefix="samserve-cluster-"))
        atexit.register(self.close)
        try:
            count = self._masters * (1 + self._replicas)
            self.nodes = self._start_nodes(self._choose_ports(count))
            masters, others = self.nodes[: self._masters], self.nodes[self._masters :]
            replicas = {node: masters[i % len(masters)] for i, node in enumerate(others)}
            forming.form(self.flavour, masters, replicas)
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop all nodes and remove their files."""
        self.kill()
        for node in self._started:
            node.close()
        self._started.clear()
        self._reserved.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        atexit.unregister(self.close)

    @property
    def addresses(self) -> tuple[str, ...]:
        """``host:port`` of every node, for clients."""
        return tuple(node.announced for node in self.nodes)

    @property
    def masters(self) -> tuple[Node, ...]:
        """The current masters, including a dead one until its failover."""
        view = forming.latest_view(self.nodes)
        ids = {member.id for member in view.members if member.is_master}
        return tuple(node for node in self.nodes if node.id in ids)

    def replicas_of(self, master: Node) -> tuple[Node, ...]:
        """Return the current replicas of a master, including dead ones."""
        view = forming.latest_view(self.nodes)
        ids = {member.id for member in view.members if member.master == master.id}
        return tuple(node for node in self.nodes if node.id in ids)

    def owner_of(self, key: str | bytes) -> Node:
        """Return the master that owns the key's slot now."""
        return self.owner_of_slot(self.slot_of(key))

    def owner_of_slot(self, slot: int) -> Node:
        """Return the master that owns the slot now."""
        owner = forming.latest_view(self.nodes).owner(slot)
        for node in self.nodes:
            if node.id == owner:
                return node
        raise HarnessError(f"slot {slot} has no owner")

    @staticmethod
    def slot_of(key: str | bytes) -> int:
        """Return the slot of a key, 0 to 16383."""
        return key_slot(key.encode() if isinstance(key, str) else key)

    def client(self, node: Node) -> redis.Redis:
        """Return a client of one node with all permissions; `close` closes it."""
        return node.client

    def keys(self) -> set[bytes]:
        """Return all keys of the responding masters."""
        return {key for node in self._responsive_masters() for key in node.client.scan_iter()}

    def flush(self) -> None:
        """Remove all values from the responding masters and their replicas."""
        for node in self._responsive_masters():
            node.command("FLUSHALL", "SYNC")

    def kill(self) -> None:
        """Kill all nodes at once (SIGKILL)."""
        running = [node.pid for node in self.nodes if node.alive]
        processes.signal_all(running, signal.SIGKILL)
        for node in self.nodes:
            node.kill()

    def fail_over(self, master: Node) -> Node:
        """Kill a master, and make one of its replicas take over at once; return the replica.

        An automatic failover takes seconds: nodes wait for `cluster-node-timeout`, then vote.
        """
        successor = next(node for node in self.replicas_of(master) if node.responsive)
        master.kill()
        successor.command("CLUSTER", "FAILOVER", "TAKEOVER")
        self.wait_ready()
        return successor

    def hand_over(self, replica: Node) -> None:
        """Make a replica the master; the previous master becomes its replica."""
        replica.command("CLUSTER", "FAILOVER")
        wait_for(lambda: self._check_master(replica), READY_TIMEOUT_S)
        self.wait_ready()

    def start_again(self) -> None:
        """Start every node that does not run, and wait until the cluster is ready."""
        dead = [node for node in self.nodes if not node.alive]
        for node in dead:
            node.launch()
        for node in dead:
            node.wait_up()
        self.wait_ready()

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until the responding nodes own and serve all slots and replicas are synchronized.

        After the kill of a master, this is after the failover.  Raises `HarnessError` with the
        unmet condition and the ends of the logs.
        """
        try:
            wait_for(lambda: forming.check_ready(self.nodes), timeout_s)
        except HarnessError as error:
            raise HarnessError(f"{error}\n{self.log_tails()}") from error

    def slot_move(self, slot: int, to: Node) -> SlotMove:
        """Return the steps that move one slot; none of them has been run."""
        masters = self._responsive_masters()
        return SlotMove(slot, self.owner_of_slot(slot), to, masters)

    def move_slots(self, slots: Iterable[int], to: Node) -> None:
        """Move slots and their keys to another master, while clients use them."""
        view, masters = forming.latest_view(self.nodes), self._responsive_masters()
        by_id = {node.id: node for node in self.nodes}
        for slot in slots:
            owner = by_id.get(view.owner(slot) or "")
            if owner is None:
                raise HarnessError(f"slot {slot} has no owner")
            if owner is not to:
                SlotMove(slot, owner, to, masters).run()

    def add_node(self, replica_of: Node | None = None) -> Node:
        """Start one more node and return it: a replica, or a master without slots."""
        known = [node for node in self.nodes if node.responsive]
        (node,) = self._start_nodes(self._reserved.reserve(1))
        self.nodes = (*self.nodes, node)
        for other in known:
            forming.meet(node, other)
        if replica_of is not None:
            forming.replicate(node, replica_of)
        self.wait_ready()
        return node

    def log_tails(self) -> str:
        """Return the ends of the logs of all nodes."""
        return "\n".join(f"--- {node.address}\n{node.log_tail()}" for node in self.nodes)

    def _check_master(self, node: Node) -> None:
        if node not in self.masters:
            raise NotReadyError(f"{node.address} is no master")

    def _responsive_masters(self) -> list[Node]:
        return [node for node in self.masters if node.responsive]

    def _choose_ports(self, count: int) -> list[int]:
        if not self._port:
            return self._reserved.reserve(count)
        chosen = range(self._port, self._port + count)
        if chosen[-1] > HIGHEST:
            raise HarnessError(f"the last of {count} ports from {self._port} is above {HIGHEST}")
        return list(chosen)

    def _start_nodes(self, ports: list[int]) -> tuple[Node, ...]:
        """Start nodes concurrently; if another process takes a port, use another port."""
        launched = [self._launched(port) for port in ports]
        return tuple(self._up(node) for node in launched)

    def _launched(self, port: int) -> Node:
        if self._folder is None:
            raise HarnessError("the cluster is not started")
        announced_port, bus_port = self._announce(port), self._bus_port(port)
        directives = forming.directives(
            self.flavour, port, announced_port, bus_port, self._maxmemory
        )
        folder = Path(tempfile.mkdtemp(prefix=f"{port}-", dir=self._folder))
        options = {**{name: str(value) for name, value in directives.items()}, **self._options}
        binary = server_binary(self.flavour)
        node = Node(binary, folder, port, self._accounts, options, announced_port, bus_port)
        self._started.append(node)
        node.launch()
        return node

    def _up(self, node: Node) -> Node:
        for _ in range(_PORT_ATTEMPTS):
            try:
                node.wait_up()
            except PortTakenError:
                if self._port:
                    raise
                node.close()
                node = self._launched(*self._reserved.reserve(1))
            else:
                return node
        raise HarnessError(f"no port stayed free in {_PORT_ATTEMPTS} attempts")


def _own_bus_port(port: int) -> int:
    return port + BUS_OFFSET
