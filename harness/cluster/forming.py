"""Forms a cluster of independent servers, and checks whether it is ready."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

from harness.cluster.binaries import Flavour
from harness.cluster.errors import NotReadyError, wait_for
from harness.cluster.node import HOST, Node
from harness.cluster.view import SLOTS, View

_GOSSIP_TIMEOUT_S = 60.0
_FAILURE_FLAGS = frozenset({"fail", "fail?", "handshake", "noaddr"})


def directives(
    flavour: Flavour, port: int, announced_port: int, bus_port: int, maxmemory: int
) -> dict[str, str | int]:
    """Return a node's configuration, as in `docs/cache.md`; ``maxmemory`` in bytes."""
    announced: dict[str, str | int] = {
        "cluster-announce-ip": HOST,
        "cluster-announce-bus-port": bus_port,
    }
    if announced_port != port and flavour == "valkey":
        # For clients only: replicas connect to the server itself.
        announced["cluster-announce-client-port"] = announced_port
    elif announced_port != port:
        announced["cluster-announce-port"] = announced_port
    return {
        "port": port,
        "bind": HOST,
        "protected-mode": "no",
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        # Milliseconds without a response until a node counts as failed.
        "cluster-node-timeout": 1500,
        # Slots without an owner must not affect the others.
        "cluster-require-full-coverage": "no",
        "cluster-allow-reads-when-down": "no",
        "repl-diskless-sync": "yes",
        # By default the synchronization of a new replica is delayed by five seconds.
        "repl-diskless-sync-delay": 0,
        "save": '""',
        # A master whose process is restarted still owns its slots, so it must keep its data.
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory": maxmemory,
        "maxmemory-policy": "allkeys-lru",
        **announced,
    }


def form(flavour: Flavour, masters: Sequence[Node], replicas: Mapping[Node, Node]) -> None:
    """Assign all slots to ``masters``, and each replica to its master; see `check_ready`."""
    nodes = [*masters, *replicas]
    bounds = [SLOTS * i // len(masters) for i in range(len(masters) + 1)]
    for node, (first, end) in zip(masters, itertools.pairwise(bounds), strict=True):
        _add_slots(flavour, node, range(first, end))
    for epoch, node in enumerate(nodes, start=1):
        # Equal epochs would be conflicts that the nodes must resolve first.
        node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
    for one, other in itertools.combinations(nodes, 2):
        # All pairs, because gossip would need another second.
        meet(one, other)
    for replica, master in replicas.items():
        replicate(replica, master)


def meet(one: Node, other: Node) -> None:
    """Introduce a node to another."""
    one.command("CLUSTER", "MEET", HOST, other.port, other.bus_port)


def replicate(replica: Node, master: Node) -> None:
    """Make an empty node a replica, once it knows its master."""
    wait_for(lambda: replica.command("CLUSTER", "REPLICATE", master.id), _GOSSIP_TIMEOUT_S)


def check_ready(nodes: Sequence[Node]) -> None:
    """Raise `NotReadyError` unless the responding nodes form a cluster that serves all slots.

    All of them report the state ok, own all slots, agree on the owners of slots, know the announced
    addresses, and the replicas are synchronized.
    """
    responsive = [node for node in nodes if node.responsive]
    if not responsive:
        raise NotReadyError("no node responds")
    views = {node: node.view() for node in responsive}
    for node, view in views.items():
        _check_view(node, view, responsive)
    if len({view.roles() for view in views.values()}) > 1:
        raise NotReadyError("the nodes disagree on the owners of slots or on the replicas")
    for node in responsive:
        _check_state(node)


def _check_view(node: Node, view: View, responsive: Sequence[Node]) -> None:
    covered = sum(len(slots) for owner in view.owners for slots in owner.slots)
    if covered != SLOTS:
        raise NotReadyError(f"{node.address} knows the owners of {covered} slots")
    missing = {owner.id for owner in view.owners} - {other.id for other in responsive}
    if missing:
        raise NotReadyError(f"owners of slots do not respond: {missing}")
    for other in responsive:
        member = view.get(other.id)
        if member is None or member.port != other.announced_port or member.flags & _FAILURE_FLAGS:
            raise NotReadyError(f"{node.address} sees {other.address} as {member}")


def _check_state(node: Node) -> None:
    state = _pairs(node.command("CLUSTER", "INFO"))
    if (state["cluster_state"], state["cluster_slots_ok"]) != ("ok", str(SLOTS)):
        raise NotReadyError(f"{node.address} reports: {state}")
    replication = node.client.info("replication")
    if replication["role"] == "slave" and replication["master_link_status"] != "up":
        raise NotReadyError(f"the replica {node.address} is not synchronized")


def _pairs(reply: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in reply.decode().splitlines())
    return {name: value for name, _, value in pairs}


def _add_slots(flavour: Flavour, node: Node, slots: range) -> None:
    if flavour == "valkey":
        node.command("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
    else:
        node.command("CLUSTER", "ADDSLOTS", *slots)


def latest_view(nodes: Sequence[Node]) -> View:
    """Return the latest view of the responding nodes.

    A node that was unavailable has an outdated view for a moment.
    """
    views = wait_for(functools.partial(_views, nodes), _GOSSIP_TIMEOUT_S)
    return max(views, key=lambda view: view.epoch)


def _views(nodes: Sequence[Node]) -> list[View]:
    views = [node.view() for node in nodes if node.responsive]
    if not views:
        raise NotReadyError("no node responds")
    return views
