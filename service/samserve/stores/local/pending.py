"""Slots that are being written, and what was deleted meanwhile."""

from __future__ import annotations

from collections import OrderedDict

from samserve.memory.slot import Slot
from samserve.stores.base import Epoch
from samserve.types import EmbeddingKey

_MAX_DELETIONS = 10_000


class PendingSlots:
    """Knows which slots become visible when they are published: none whose key was deleted since.

    The number of the last deletion is kept of the latest keys only; work for another key that has
    begun before those counts as deleted.
    """

    def __init__(self) -> None:
        self._slots: dict[EmbeddingKey, set[Slot]] = {}
        self._deletions: OrderedDict[EmbeddingKey, int] = OrderedDict()
        # The last deletion whose key is not kept any more.
        self._dropped = 0
        self.epoch = 0
        """The number of the last deletion."""

    def add(self, slot: Slot, since: Epoch | None) -> None:
        """Let a slot become visible, unless its key was deleted since the epoch *since*."""
        last = self._deletions.get(slot.key, self._dropped)
        if not isinstance(since, int) or since >= last:
            self._slots.setdefault(slot.key, set()).add(slot)

    def remove(self, slot: Slot) -> bool:
        """Return whether the slot becomes visible, and forget it."""
        slots = self._slots.get(slot.key, set())
        pending = slot in slots
        slots.discard(slot)
        if pending and not slots:
            del self._slots[slot.key]
        return pending

    def delete(self, key: EmbeddingKey) -> None:
        """Let no slot of *key* become visible whose work has begun."""
        self._slots.pop(key, None)
        self.epoch += 1
        self._deletions[key] = self.epoch
        self._deletions.move_to_end(key)
        if len(self._deletions) > _MAX_DELETIONS:
            _, self._dropped = self._deletions.popitem(last=False)

    def clear(self) -> None:
        """Forget all slots and deletions."""
        self._slots.clear()
        self._deletions.clear()
