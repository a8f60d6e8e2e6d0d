"""What a node says about the cluster: the answer to CLUSTER NODES."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SLOTS = 16384


@dataclass(frozen=True, slots=True)
class Member:
    """One node, as another (or it itself) sees it."""

    id: str
    port: int
    """The one announced to clients."""
    flags: frozenset[str]
    master: str | None
    """The id of its master; None: it is a master."""
    epoch: int
    """Of its configuration: of two that claim a slot the later one owns it."""
    slots: tuple[range, ...]

    @property
    def is_master(self) -> bool:
        """Whether it has slots, or could have some; not what failed and was replaced."""
        return self.master is None and (bool(self.slots) or "fail" not in self.flags)


@dataclass(frozen=True, slots=True)
class View:
    """All nodes, as one of them sees them."""

    members: tuple[Member, ...]

    @property
    def epoch(self) -> int:
        """The latest in it: of two views, the one with the later epoch knows more."""
        return max(member.epoch for member in self.members)

    @property
    def owners(self) -> tuple[Member, ...]:
        """Those that have slots."""
        return tuple(member for member in self.members if member.slots)

    def roles(self) -> frozenset[tuple[str, str | None, tuple[range, ...]]]:
        """Return what nodes must agree about: ids, their masters, and slots.

        Without those that have failed and were replaced, which new nodes do not hear of.
        """
        return frozenset(
            (member.id, member.master, member.slots)
            for member in self.members
            if member.slots or "fail" not in member.flags
        )

    def owner(self, slot: int) -> str | None:
        """Return the id of the node that has the slot."""
        for member in self.members:
            if any(slot in slots for slots in member.slots):
                return member.id
        return None

    def get(self, node_id: str) -> Member | None:
        """Return the node with this id, if it is known."""
        return next((member for member in self.members if member.id == node_id), None)


def parse(answer: bytes) -> View:
    """Read the answer to CLUSTER NODES."""
    return View(tuple(_member(line.split(" ")) for line in answer.decode().splitlines()))


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
        # In brackets: slots that are being moved, which are still where they were.
        if not field.startswith("["):
            first, _, last = field.partition("-")
            yield range(int(first), int(last or first) + 1)
