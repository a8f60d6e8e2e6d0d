"""Moves slots between masters while clients use them, like ``redis-cli --cluster reshard``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.cluster.node import COMMAND_TIMEOUT_S, HOST, Node
from harness.errors import HarnessError

BATCH = 10
"""Keys that are moved at once; meanwhile both nodes respond to no client."""


@dataclass(frozen=True, slots=True)
class SlotMove:
    """The consecutive steps of moving one slot; a test may use the cluster between them."""

    slot: int
    source: Node
    target: Node
    masters: Sequence[Node]
    """All responding masters, including source and target."""

    def begin(self) -> None:
        """Start the migration: the source replies ASK for keys that it does not have."""
        self._set_slot(self.target, "IMPORTING", self.source.id)
        self._set_slot(self.source, "MIGRATING", self.target.id)

    def move_keys(self, batch: int = BATCH) -> int:
        """Move at most ``batch`` keys; return their number."""
        keys = self.source.command("CLUSTER", "GETKEYSINSLOT", self.slot, batch)
        if keys:
            timeout_ms = int(COMMAND_TIMEOUT_S * 1000)
            own = self.source.accounts.own
            self.source.command(
                *("MIGRATE", HOST, self.target.port, "", 0, timeout_ms),
                *(("AUTH2", *own) if own else ()),
                *("KEYS", *keys),
            )
        return len(keys)

    def finish(self) -> None:
        """Assign the slot, which must be empty at the source, to the target.

        The target is informed first: if it failed while still importing, the slot would have no
        owner.
        """
        others = [node for node in self.masters if node not in (self.source, self.target)]
        for node in (self.target, self.source, *others):
            self._set_slot(node, "NODE", self.target.id)

    def run(self) -> None:
        """Run all steps."""
        self.begin()
        while self.move_keys():
            pass
        self.finish()

    def _set_slot(self, node: Node, state: str, node_id: str) -> None:
        reply = node.command("CLUSTER", "SETSLOT", self.slot, state, node_id)
        if reply != b"OK":
            raise HarnessError(f"SETSLOT {self.slot} {state} at {node.address}: {reply!r}")
