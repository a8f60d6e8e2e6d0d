"""What each tenant holds of a store, and whose entry goes when room is needed.

Nothing here looks at all entries or all tenants: with a million of either, an operation costs what
it costs with a thousand.
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

# So few outdated items are not worth a clean-up.
_OUTDATED = 32


class Ranking(Generic[Member]):
    """Members by rank, the lowest first, and of equal ones the one that was put there first.

    An operation takes O(log n), amortised: a heap, whose outdated items stay, without their member,
    until they come to the top or outnumber the others (see "Priority Queue Implementation Notes" of
    `heapq`).
    """

    def __init__(self) -> None:
        # An item is a rank, a serial number that orders equal ranks, and a member or None.
        self._items: dict[Member, list[Any]] = {}
        self._heap: list[list[Any]] = []
        self._serials = itertools.count()

    def __len__(self) -> int:
        """Count items, outdated ones included."""
        return len(self._heap)

    def put(self, rank: float, member: Member) -> None:
        """Put a member, which may have had another rank, behind the others of its rank."""
        self.discard(member)
        item = self._items[member] = [rank, next(self._serials), member]
        heapq.heappush(self._heap, item)
        if len(self._heap) > 2 * len(self._items) + _OUTDATED:
            self._heap = list(self._items.values())
            heapq.heapify(self._heap)

    def discard(self, member: Member) -> None:
        """Take a member out, if it is there."""
        item = self._items.pop(member, None)
        if item is not None:
            item[2] = None

    def first(self) -> tuple[float, Member] | None:
        """Find the lowest rank and its first member."""
        while self._heap:
            rank, _, member = self._heap[0]
            if member is not None:
                return rank, member
            heapq.heappop(self._heap)
        return None


@dataclass(slots=True, eq=False)
class Entry:
    """One embedding of a store, where its bytes lie, and who holds it.

    ``leases`` counts its holders; ``listed`` tells whether it is found under its key.
    ``expires_at`` is in seconds since the epoch.
    """

    key: EmbeddingKey
    facts: EmbeddingFacts
    tensors: Mapping[str, Array]
    index: int
    nbytes: int
    expires_at: float
    leases: int = 0
    listed: bool = False


@dataclass(slots=True, eq=False)
class Usage:
    """What one tenant holds.

    ``used`` counts all of its bytes, also those that are being written or deleted but still held.
    ``entries`` are listed, by the embedding's id, least recently used first; ``idle`` of
    them have no holder.
    """

    used: int = 0
    idle: int = 0
    entries: OrderedDict[str, Entry] = field(default_factory=OrderedDict)

    def oldest_idle(self) -> Entry | None:
        """Find the entry that goes first, None if all are held.

        Those in use that are passed over are no more than calls in flight, which are bounded.
        """
        if not self.idle:
            return None
        return next(entry for entry in self.entries.values() if not entry.leases)


class TenantUsage:
    """All entries and bytes of a store by tenant."""

    def __init__(self) -> None:
        self.used = 0
        self.listed = 0
        self._by_tenant: dict[str, Usage] = {}
        # Those that have an idle entry, by what they hold, the most first.
        self._ranking: Ranking[Usage] = Ranking()

    def __iter__(self) -> Iterator[Entry]:
        """Iterate over all that is listed."""
        for usage in self._by_tenant.values():
            yield from usage.entries.values()

    def of(self, tenant: str) -> Usage:
        """Look at what a tenant holds; an empty usage if that is nothing."""
        return self._by_tenant.get(tenant) or Usage()

    def find(self, key: EmbeddingKey) -> Entry | None:
        """Find what is listed under a key."""
        usage = self._by_tenant.get(key.tenant)
        return None if usage is None else usage.entries.get(key.embedding_id)

    def take(self, tenant: str, nbytes: int) -> None:
        """Count bytes that a tenant holds from now on."""
        usage = self._by_tenant.get(tenant)
        if usage is None:
            usage = self._by_tenant[tenant] = Usage()
        self.used += nbytes
        usage.used += nbytes
        self._rank(usage)

    def give_back(self, tenant: str, nbytes: int) -> None:
        """Count bytes that a tenant holds no longer."""
        usage = self._by_tenant[tenant]
        self.used -= nbytes
        usage.used -= nbytes
        self._rank(usage)
        if not usage.used:
            # Tenants come and go for as long as the server runs.
            del self._by_tenant[tenant]

    def list_entry(self, entry: Entry) -> None:
        """Let an entry, whose bytes are taken, be found; nothing else is listed under its key."""
        usage = self._by_tenant[entry.key.tenant]
        entry.listed = True
        usage.entries[entry.key.embedding_id] = entry
        self.listed += 1
        if not entry.leases:
            self._count_idle(usage, 1)

    def unlist(self, entry: Entry) -> None:
        """Let a listed entry not be found any more; its bytes are still taken."""
        usage = self._by_tenant[entry.key.tenant]
        entry.listed = False
        del usage.entries[entry.key.embedding_id]
        self.listed -= 1
        if not entry.leases:
            self._count_idle(usage, -1)

    def touch(self, entry: Entry) -> None:
        """Note that a listed entry is used now."""
        self._by_tenant[entry.key.tenant].entries.move_to_end(entry.key.embedding_id)

    def hold(self, entry: Entry) -> None:
        """Add a holder of an entry, listed or not."""
        entry.leases += 1
        if entry.listed and entry.leases == 1:
            self._count_idle(self._by_tenant[entry.key.tenant], -1)

    def let_go(self, entry: Entry) -> None:
        """Take a holder away."""
        entry.leases -= 1
        if entry.listed and not entry.leases:
            self._count_idle(self._by_tenant[entry.key.tenant], 1)

    def eviction_candidate(self, tenant: str) -> Entry | None:
        """Choose what goes: the oldest of who holds most, so that a flood drives out its own.

        No tenant loses anything to one that holds more than it does.  Of several who hold as much,
        *tenant* itself is chosen, otherwise who has not used its own for longest.  What is in use
        does not go; None if nothing can.
        """
        first = self._ranking.first()
        if first is None:
            return None
        most, mine = first[1], self.of(tenant)
        if mine.used > most.used:
            return None
        if mine.used == most.used and mine.idle:
            most = mine
        return most.oldest_idle()

    def _count_idle(self, usage: Usage, more: int) -> None:
        usage.idle += more
        self._rank(usage)

    def _rank(self, usage: Usage) -> None:
        """Rank a tenant's usage after a change, behind those that hold as much."""
        if usage.idle:
            self._ranking.put(-usage.used, usage)
        else:
            self._ranking.discard(usage)


def over_quota(tenant: str, quota: int, wanted: int) -> QuotaExceeded:
    """Return the error for *wanted* bytes that do not fit into a tenant's *quota* of bytes."""
    if wanted > quota:
        return QuotaExceeded(
            f"an embedding has {wanted} bytes, over this tenant's quota of {quota}",
            subject=f"tenant:{tenant}",
            retry_after_s=None,
            metadata={"quota": "stored_bytes", "limit": str(quota), "actual": str(wanted)},
        )
    return QuotaExceeded(
        f"all of the {quota} bytes of embeddings that are this tenant's quota are in use",
        subject=f"tenant:{tenant}",
        retry_after_s=1.0,
        metadata={"quota": "stored_bytes", "limit": str(quota)},
    )


def full(capacity: int) -> Overloaded:
    """Return the error for a store of *capacity* bytes in which nothing can be evicted."""
    return Overloaded(
        f"the embedding store is full of embeddings in use (capacity {capacity} bytes)",
        metadata={"capacity_bytes": str(capacity)},
    )
