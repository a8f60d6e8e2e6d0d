"""Eviction in the local tier: its memory by tenant, and the choice of the entry to evict.

No operation iterates over all entries or all tenants: with a million of either, it takes as long as
with a thousand.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from samserve.errors import Overloaded, QuotaExceeded
from samserve.types import Array, EmbeddingFacts, EmbeddingKey

Member = TypeVar("Member")

# Outdated items that are tolerated before the heap is rebuilt.
_MIN_OUTDATED = 32


class Ranking(Generic[Member]):
    """A priority queue of members by rank, lowest first; equal ranks in order of insertion.

    Operations take O(log n), amortised: outdated items stay in the heap, without their member,
    until they reach the top or outnumber the valid ones (see "Priority Queue Implementation Notes"
    of `heapq`).
    """

    def __init__(self) -> None:
        # An item is a rank, a serial number that orders equal ranks, and a member or None.
        self._items: dict[Member, list[Any]] = {}
        self._heap: list[list[Any]] = []
        self._serials = itertools.count()

    def __len__(self) -> int:
        """Return the number of items, outdated ones included."""
        return len(self._heap)

    def put(self, rank: float, member: Member) -> None:
        """Insert a member behind the others of its rank; it replaces its previous rank."""
        self.discard(member)
        item = self._items[member] = [rank, next(self._serials), member]
        heapq.heappush(self._heap, item)
        if len(self._heap) > 2 * len(self._items) + _MIN_OUTDATED:
            self._heap = list(self._items.values())
            heapq.heapify(self._heap)

    def discard(self, member: Member) -> None:
        """Remove a member, if it is contained."""
        item = self._items.pop(member, None)
        if item is not None:
            item[2] = None

    def first(self) -> tuple[float, Member] | None:
        """Return the lowest rank and its first member, None if empty."""
        while self._heap:
            rank, _, member = self._heap[0]
            if member is not None:
                return rank, member
            heapq.heappop(self._heap)
        return None


@dataclass(slots=True, eq=False)
class Entry:
    """One embedding, the slot that holds it, and its leases.

    ``leases`` is the number of leases; ``indexed`` is whether it is found under its key.
    ``expires_at`` is in seconds since the epoch.
    """

    key: EmbeddingKey
    facts: EmbeddingFacts
    tensors: Mapping[str, Array]
    index: int
    nbytes: int
    expires_at: float
    leases: int = 0
    indexed: bool = False


@dataclass(slots=True, eq=False)
class Usage:
    """Memory of one tenant.

    ``used`` is all of its bytes, also those that are being written, or deleted but still leased.
    ``entries`` are the indexed ones by embedding id, least recently used first; ``idle`` of them
    have no lease.
    """

    used: int = 0
    idle: int = 0
    entries: OrderedDict[str, Entry] = field(default_factory=OrderedDict)

    def oldest_idle(self) -> Entry | None:
        """Return the least recently used entry without a lease, None if all are leased.

        The leased entries that are skipped are no more than the calls in flight, which are limited.
        """
        if not self.idle:
            return None
        return next(entry for entry in self.entries.values() if not entry.leases)


class TenantUsage:
    """All entries and bytes of the local tier by tenant."""

    def __init__(self) -> None:
        self.used = 0
        self.indexed = 0
        self._by_tenant: dict[str, Usage] = {}
        # Tenants that have an idle entry, by bytes used, the most first.
        self._ranking: Ranking[Usage] = Ranking()

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over all indexed entries."""
        for usage in self._by_tenant.values():
            yield from usage.entries.values()

    def of(self, tenant: str) -> Usage:
        """Return the usage of a tenant, an empty one if it uses nothing."""
        return self._by_tenant.get(tenant) or Usage()

    def find(self, key: EmbeddingKey) -> Entry | None:
        """Return the entry that is indexed under a key, None without one."""
        usage = self._by_tenant.get(key.tenant)
        return None if usage is None else usage.entries.get(key.embedding_id)

    def add_bytes(self, tenant: str, nbytes: int) -> None:
        """Charge bytes to a tenant."""
        usage = self._by_tenant.get(tenant)
        if usage is None:
            usage = self._by_tenant[tenant] = Usage()
        self.used += nbytes
        usage.used += nbytes
        self._rank(usage)

    def remove_bytes(self, tenant: str, nbytes: int) -> None:
        """Subtract freed bytes from a tenant's usage."""
        usage = self._by_tenant[tenant]
        self.used -= nbytes
        usage.used -= nbytes
        self._rank(usage)
        if not usage.used:
            # New tenants appear for as long as the server runs, so idle ones must not accumulate.
            del self._by_tenant[tenant]

    def add_entry(self, entry: Entry) -> None:
        """Index an entry whose bytes are charged already; its key must not be indexed."""
        usage = self._by_tenant[entry.key.tenant]
        entry.indexed = True
        usage.entries[entry.key.embedding_id] = entry
        self.indexed += 1
        if not entry.leases:
            self._count_idle(usage, 1)

    def remove_entry(self, entry: Entry) -> None:
        """Remove an entry from the index; its bytes stay charged."""
        usage = self._by_tenant[entry.key.tenant]
        entry.indexed = False
        del usage.entries[entry.key.embedding_id]
        self.indexed -= 1
        if not entry.leases:
            self._count_idle(usage, -1)

    def touch(self, entry: Entry) -> None:
        """Mark an indexed entry as most recently used."""
        self._by_tenant[entry.key.tenant].entries.move_to_end(entry.key.embedding_id)

    def add_lease(self, entry: Entry) -> None:
        """Count a lease of an entry, indexed or not."""
        entry.leases += 1
        if entry.indexed and entry.leases == 1:
            self._count_idle(self._by_tenant[entry.key.tenant], -1)

    def remove_lease(self, entry: Entry) -> None:
        """Count the end of a lease."""
        entry.leases -= 1
        if entry.indexed and not entry.leases:
            self._count_idle(self._by_tenant[entry.key.tenant], 1)

    def eviction_candidate(self, tenant: str) -> Entry | None:
        """Return the entry to evict for *tenant*: the oldest of the tenant that uses most memory.

        So a tenant that floods the cache evicts its own entries, and no tenant loses an entry to
        one that uses more.  If several use as much, *tenant* itself is chosen, otherwise the one
        that has not used its embeddings for longest.  Leased entries are not evicted; None if
        there is no candidate.
        """
        first = self._ranking.first()
        if first is None:
            return None
        largest, own = first[1], self.of(tenant)
        if own.used > largest.used:
            return None
        if own.used == largest.used and own.idle:
            largest = own
        return largest.oldest_idle()

    def _count_idle(self, usage: Usage, change: int) -> None:
        usage.idle += change
        self._rank(usage)

    def _rank(self, usage: Usage) -> None:
        """Update a tenant's rank after a change, behind those with the same usage."""
        if usage.idle:
            self._ranking.put(-usage.used, usage)
        else:
            self._ranking.discard(usage)


def quota_error(tenant: str, quota: int, wanted: int) -> QuotaExceeded:
    """Return the error for *wanted* bytes that exceed a tenant's *quota* of bytes."""
    if wanted > quota:
        return QuotaExceeded(
            f"an embedding has {wanted} bytes, more than this tenant's quota of {quota} bytes",
            subject=f"tenant:{tenant}",
            retry_after_s=None,
            metadata={"quota": "max_cached_bytes", "limit": str(quota), "actual": str(wanted)},
        )
    return QuotaExceeded(
        f"this tenant's quota of {quota} bytes of embeddings is full of embeddings in use",
        subject=f"tenant:{tenant}",
        retry_after_s=1.0,
        metadata={"quota": "max_cached_bytes", "limit": str(quota)},
    )


def capacity_error(capacity: int) -> Overloaded:
    """Return the error for a local tier of *capacity* bytes in which nothing can be evicted."""
    return Overloaded(
        f"the embedding cache is full of embeddings in use (capacity {capacity} bytes)",
        metadata={"capacity_bytes": str(capacity)},
    )
