"""A node's view of the cluster: the reply to CLUSTER NODES."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Member:
    """One node in the view of another node or of itself."""

    id: str
    port: int
    """The port announced to clients."""
    flags: frozenset[str]
    master: str | None
    """The id of its master; None if it is a master."""
    epoch: int
    """The configuration epoch: of two nodes that claim a slot, the one with the later owns it."""
    slots: tuple[range, ...]

    @property
    def is_master(self) -> bool:
        """Whether it owns slots or could own some; False for failed nodes after a failover."""
        return self.master is None and (bool(self.slots) or "fail" not in self.flags)


@dataclass(frozen=True, slots=True)
class View:
    """All nodes in the view of one of them."""

    members: tuple[Member, ...]

    @property
    def epoch(self) -> int:
        """The latest epoch: of two views, the one with the later epoch is newer."""
        return max(member.epoch for member in self.members)

    @property
    def owners(self) -> tuple[Member, ...]:
        """The nodes that own slots."""
        return tuple(member for member in self.members if member.slots)

    def roles(self) -> frozenset[tuple[str, str | None, tuple[range, ...]]]:
        """Return what nodes must agree on: ids, their masters, and slots.

        Failed nodes after a failover are excluded, because new nodes do not know them.
        """
        return frozenset(
            (member.id, member.master, member.slots)
            for member in self.members
            if member.slots or "fail" not in member.flags
        )

    def owner(self, slot: int) -> str | None:
        """Return the id of the owner of a slot, None without one."""
        for member in self.members:
            if any(slot in slots for slots in member.slots):
                return member.id
        return None

    def get(self, node_id: str) -> Member | None:
        """Return the node with this id, None if it is unknown."""
        return next((member for member in self.members if member.id == node_id), None)


def parse(reply: bytes) -> View:
    """Parse the reply to CLUSTER NODES."""
    return View(tuple(_member(line.split(" ")) for line in reply.decode().splitlines()))


def _member(fields: list[str]) -> Member:
    # <id> <ip:port@bus,...> <flags> <master> <ping sent> <pong received> <epoch> <link> <slot> ...
    node_id, address, flags, master, _, _, epoch, _ = fields[:8]
    return Member(
        node_id,
        int(re.findall(r":(\d+)@", address)[0]),
        frozenset(flags.split(",")),
        None if master == "-" else master,
        int(epoch),
        tuple(_ranges(fields[8:])),
    )


def _ranges(fields: Iterable[str]) -> Iterable[range]:
    for field in fields:
        # In brackets: slots that are being moved, which still belong to their owner.
        if not field.startswith("["):
            first, _, last = field.partition("-")
            yield range(int(first), int(last or first) + 1)
