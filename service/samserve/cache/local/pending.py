"""Slots that are being written, and keys that were deleted meanwhile."""

from __future__ import annotations

from collections import OrderedDict

from samserve.cache.base import Epoch
from samserve.memory.slot import Slot
from samserve.types import EmbeddingKey

_MAX_DELETIONS = 10_000


class PendingSlots:
    """Tracks which slots may become visible: those whose key was not deleted since the work began.

    The number of the last deletion is kept for the most recently deleted keys only.  For any other
    key, work that began before the oldest of these counts as deleted.
    """

    def __init__(self) -> None:
        self._slots: dict[EmbeddingKey, set[Slot]] = {}
        self._deletions: OrderedDict[EmbeddingKey, int] = OrderedDict()
        # The number of the last deletion whose key is not kept any more.
        self._last_discarded = 0
        self.epoch = 0
        """The number of the last deletion."""

    def add(self, slot: Slot, since: Epoch | None) -> None:
        """Register a slot, unless its key was deleted since the epoch *since*."""
        last = self._deletions.get(slot.key, self._last_discarded)
        if not isinstance(since, int) or since >= last:
            self._slots.setdefault(slot.key, set()).add(slot)

    def remove(self, slot: Slot) -> bool:
        """Unregister a slot; return whether it may become visible."""
        slots = self._slots.get(slot.key, set())
        pending = slot in slots
        slots.discard(slot)
        if pending and not slots:
            del self._slots[slot.key]
        return pending

    def delete(self, key: EmbeddingKey) -> None:
        """Keep all registered slots of *key*, and work that has begun, from becoming visible."""
        self._slots.pop(key, None)
        self.epoch += 1
        self._deletions[key] = self.epoch
        self._deletions.move_to_end(key)
        if len(self._deletions) > _MAX_DELETIONS:
            _, self._last_discarded = self._deletions.popitem(last=False)

    def clear(self) -> None:
        """Remove all slots and deletions."""
        self._slots.clear()
        self._deletions.clear()
