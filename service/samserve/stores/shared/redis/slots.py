"""Which node owns which hash slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from samserve.stores.shared.base import Refused, Reply

SLOTS = 16384

Address: TypeAlias = tuple[str, int]


@dataclass(slots=True)
class SlotMap:
    """The owner of each slot, None where there is none, and the replicas that were seen."""

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


def parse_slots(reply: Reply, asked: Address) -> SlotMap | None:
    """Read the answer to CLUSTER SLOTS of the node at *asked*; None if it makes no sense.

    A server without cluster mode owns everything itself.  An empty host means the one that was
    asked, as the protocol says.
    """
    if isinstance(reply, Refused):
        alone = "cluster support disabled" in reply.text
        return SlotMap([asked] * SLOTS) if alone else None
    slots = SlotMap()
    replicas: set[Address] = set()
    try:
        for first, last, master, *others in reply:
            owner = _address(master, asked)
            if not 0 <= first <= last < SLOTS:
                return None
            slots.owners[first : last + 1] = [owner] * (last + 1 - first)
            replicas.update(_address(other, asked) for other in others)
    except (TypeError, ValueError, IndexError, AttributeError):
        return None
    slots.replicas = frozenset(replicas)
    return slots


def _address(node: Sequence[Reply], asked: Address) -> Address:
    host = node[0].decode() if node[0] else ""
    return (asked[0] if host in ("", "?") else host), int(node[1])
