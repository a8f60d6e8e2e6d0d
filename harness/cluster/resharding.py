"""Moving slots between masters while clients use them, as ``redis-cli --cluster reshard`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.cluster.node import COMMAND_TIMEOUT_S, HOST, Node
from harness.errors import HarnessError

BATCH = 10
"""Keys that are moved at once, during which both nodes answer nobody."""


@dataclass(frozen=True, slots=True)
class SlotMove:
    """One slot on its way; a test may look at the cluster between the steps, which go in order."""

    slot: int
    source: Node
    target: Node
    masters: Sequence[Node]
    """All that answer, source and target among them."""

    def begin(self) -> None:
        """From now on the source answers ASK for keys that it does not have."""
        self._set_slot(self.target, "IMPORTING", self.source.id)
        self._set_slot(self.source, "MIGRATING", self.target.id)

    def move_keys(self, batch: int = BATCH) -> int:
        """Move up to ``batch`` keys, and return how many that were."""
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
        """Give the slot, which must be empty at the source, to the target.

        To the target first: if it ended with the slot still importing, nobody would own the slot.
        """
        others = [node for node in self.masters if node not in (self.source, self.target)]
        for node in (self.target, self.source, *others):
            self._set_slot(node, "NODE", self.target.id)

    def run(self) -> None:
        """All steps."""
        self.begin()
        while self.move_keys():
            pass
        self.finish()

    def _set_slot(self, node: Node, state: str, node_id: str) -> None:
        answer = node.command("CLUSTER", "SETSLOT", self.slot, state, node_id)
        if answer != b"OK":
            raise HarnessError(f"SETSLOT {self.slot} {state} at {node.address}: {answer!r}")
