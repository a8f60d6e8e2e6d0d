"""Making one cluster of servers that do not know each other, and telling when it is one."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence

from harness.cluster.binaries import Flavour
from harness.cluster.errors import NotYetError, wait_for
from harness.cluster.node import HOST, Node
from harness.cluster.view import SLOTS, View

_HEARD_S = 60.0
_UNWELL = frozenset({"fail", "fail?", "handshake", "noaddr"})


def directives(
    flavour: Flavour, port: int, announced_port: int, bus_port: int, maxmemory: int
) -> dict[str, str | int]:
    """Return a node's configuration, as `docs/cache.md` has it; ``maxmemory`` in bytes."""
    announced: dict[str, str | int] = {
        "cluster-announce-ip": HOST,
        "cluster-announce-bus-port": bus_port,
    }
    if announced_port != port and flavour == "valkey":
        # To clients only: replicas go to the server itself.
        announced["cluster-announce-client-port"] = announced_port
    elif announced_port != port:
        announced["cluster-announce-port"] = announced_port
    return {
        "port": port,
        "bind": HOST,
        "protected-mode": "no",
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        # Milliseconds without an answer until a node counts as failed.
        "cluster-node-timeout": 1500,
        # Slots without an owner must not stop the others.
        "cluster-require-full-coverage": "no",
        "cluster-allow-reads-when-down": "no",
        "repl-diskless-sync": "yes",
        # By default a new replica waits for others for five seconds, and has nothing until then.
        "repl-diskless-sync-delay": 0,
        "save": '""',
        # A master whose process is restarted is the owner again before a replica has taken over.
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory": maxmemory,
        "maxmemory-policy": "allkeys-lru",
        **announced,
    }


def form(flavour: Flavour, masters: Sequence[Node], replicas: Mapping[Node, Node]) -> None:
    """Give all slots to ``masters``, and each replica its master; `check_ready` tells the end."""
    nodes = [*masters, *replicas]
    bounds = [SLOTS * i // len(masters) for i in range(len(masters) + 1)]
    for node, (first, end) in zip(masters, itertools.pairwise(bounds), strict=True):
        _add_slots(flavour, node, range(first, end))
    for epoch, node in enumerate(nodes, start=1):
        # Different ones, otherwise the nodes quarrel about them first.
        node.command("CLUSTER", "SET-CONFIG-EPOCH", epoch)
    for one, other in itertools.combinations(nodes, 2):
        # Each with each, because gossip takes a second to introduce them.
        meet(one, other)
    for replica, master in replicas.items():
        replicate(replica, master)


def meet(one: Node, other: Node) -> None:
    """Introduce a node to another."""
    one.command("CLUSTER", "MEET", HOST, other.port, other.bus_port)


def replicate(replica: Node, master: Node) -> None:
    """Make an empty node a replica, as soon as it has heard of its master."""
    wait_for(lambda: replica.command("CLUSTER", "REPLICATE", master.id), _HEARD_S)


def check_ready(nodes: Sequence[Node]) -> None:
    """Raise `NotYetError` unless the nodes that answer form a cluster that serves everything.

    All of them say so, own all slots, agree who owns what, know where clients find each other, and
    the replicas have what their masters have.
    """
    answering = [node for node in nodes if node.answering]
    if not answering:
        raise NotYetError("no node answers")
    views = {node: node.view() for node in answering}
    for node, view in views.items():
        _check_view(node, view, answering)
    if len({view.roles() for view in views.values()}) > 1:
        raise NotYetError("the nodes disagree who owns which slots, or whose replica is who")
    for node in answering:
        _check_state(node)


def _check_view(node: Node, view: View, answering: Sequence[Node]) -> None:
    covered = sum(len(slots) for owner in view.owners for slots in owner.slots)
    if covered != SLOTS:
        raise NotYetError(f"{node.address} knows the owners of {covered} slots")
    missing = {owner.id for owner in view.owners} - {other.id for other in answering}
    if missing:
        raise NotYetError(f"owners of slots do not answer: {missing}")
    for other in answering:
        member = view.get(other.id)
        if member is None or member.port != other.announced_port or member.flags & _UNWELL:
            raise NotYetError(f"{node.address} sees {other.address} as {member}")


def _check_state(node: Node) -> None:
    state = _pairs(node.command("CLUSTER", "INFO"))
    if (state["cluster_state"], state["cluster_slots_ok"]) != ("ok", str(SLOTS)):
        raise NotYetError(f"{node.address} says: {state}")
    replication = node.client.info("replication")
    if replication["role"] == "slave" and replication["master_link_status"] != "up":
        raise NotYetError(f"the replica {node.address} does not have its master's data")


def _pairs(answer: bytes) -> dict[str, str]:
    pairs = (line.partition(":") for line in answer.decode().splitlines())
    return {name: value for name, _, value in pairs}


def _add_slots(flavour: Flavour, node: Node, slots: range) -> None:
    if flavour == "valkey":
        node.command("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
    else:
        node.command("CLUSTER", "ADDSLOTS", *slots)


def latest_view(nodes: Sequence[Node]) -> View:
    """Return the view of the node that knows most, of those that answer.

    One that was away believes for a moment what was so before.
    """
    views = wait_for(functools.partial(_views, nodes), _HEARD_S)
    return max(views, key=lambda view: view.epoch)


def _views(nodes: Sequence[Node]) -> list[View]:
    views = [node.view() for node in nodes if node.answering]
    if not views:
        raise NotYetError("no node answers")
    return views
