"""The topology of the cluster: which node owns each hash slot, and the replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from samserve.cache.shared.base import ErrorReply, Reply

SLOTS = 16384

Address: TypeAlias = tuple[str, int]


@dataclass(slots=True)
class SlotMap:
    """The owner of each slot, None where there is none, and the known replicas."""

    owners: list[Address | None] = field(default_factory=lambda: [None] * SLOTS)
    replicas: frozenset[Address] = frozenset()

    @property
    def masters(self) -> frozenset[Address]:
        """The owners of slots."""
        return frozenset(owner for owner in self.owners if owner is not None)

    @property
    def addresses(self) -> frozenset[Address]:
        """All nodes."""
        return self.masters | self.replicas


def parse_slots(reply: Reply, queried: Address) -> SlotMap | None:
    """Parse the reply to CLUSTER SLOTS of the node at *queried*; None if it is invalid.

    A server without cluster mode owns all slots itself.  An empty host stands for the queried one,
    as the protocol specifies.
    """
    if isinstance(reply, ErrorReply):
        standalone = "cluster support disabled" in reply.text
        return SlotMap([queried] * SLOTS) if standalone else None
    slots = SlotMap()
    replicas: set[Address] = set()
    try:
        for first, last, master, *others in reply:
            owner = _address(master, queried)
            if not 0 <= first <= last < SLOTS:
                return None
            slots.owners[first : last + 1] = [owner] * (last + 1 - first)
            replicas.update(_address(other, queried) for other in others)
    except (TypeError, ValueError, IndexError, AttributeError):
        return None
    slots.replicas = frozenset(replicas)
    return slots


def _address(node: Sequence[Reply], queried: Address) -> Address:
    host = node[0].decode() if node[0] else ""
    return (queried[0] if host in ("", "?") else host), int(node[1])
