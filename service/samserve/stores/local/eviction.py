"""What each tenant holds of a store, and whose entry goes when room is needed.

Nothing here looks at all entries or all tenants: with a million of either, an operation costs what
it costs with a thousand.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from samserve.types import Array, EmbeddingFacts, EmbeddingKey

Member = TypeVar("Member")

# So few empty levels are not worth a clean-up.
_EMPTY_LEVELS = 32


class Levels(Generic[Member]):
    """Members at whole-number levels; finds the lowest level that has any.

    Each operation takes O(log n) in the number of levels that have members, amortised.  That is few
    where many members share a level: n tenants on n different levels hold more than n²/2 pages.
    """

    def __init__(self) -> None:
        self._members: dict[int, OrderedDict[Member, None]] = {}
        # The keys of `_members` as a heap.  Levels that have become empty stay in both until they
        # come to the top, or until as many as half of all have become empty since the last time.
        self._heap: list[int] = []
        self._emptied = 0

    def __len__(self) -> int:
        """Count levels, those included that are empty and not yet cleaned up."""
        return len(self._heap)

    def add(self, level: int, member: Member) -> None:
        """Put a member behind the others of its level."""
        members = self._members.get(level)
        if members is None:
            members = self._members[level] = OrderedDict()
            heapq.heappush(self._heap, level)
        members[member] = None

    def remove(self, level: int, member: Member) -> None:
        """Take a member out of the level that it was added to."""
        members = self._members[level]
        del members[member]
        if members:
            return
        self._emptied += 1
        if self._emptied > _EMPTY_LEVELS + len(self._heap) // 2:
            self._clean_up()

    def first(self) -> tuple[int, Member] | None:
        """Find the lowest level, and of its members the one that was added first."""
        while self._heap:
            level = self._heap[0]
            members = self._members[level]
            if members:
                return level, next(iter(members))
            del self._members[heapq.heappop(self._heap)]
        return None

    def _clean_up(self) -> None:
        self._members = {level: members for level, members in self._members.items() if members}
        self._heap = sorted(self._members)
        self._emptied = 0


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
class Share:
    """What one tenant holds.

    ``used`` counts all of its bytes, also those that are being written or deleted but still held.
    ``entries`` are listed, by the embedding's id, least recently used first; nobody holds ``idle``
    of them.  ``level`` is where the share stands in the ranking, None if it is not in it.
    """

    used: int = 0
    idle: int = 0
    entries: OrderedDict[str, Entry] = field(default_factory=OrderedDict)
    level: int | None = None

    def oldest_idle(self) -> Entry | None:
        """Find the entry that goes first, None if all are held.

        Those in use that are passed over are no more than calls in flight, which are bounded.
        """
        if not self.idle:
            return None
        return next(entry for entry in self.entries.values() if not entry.leases)


class Shares:
    """All entries and bytes of a store by tenant."""

    def __init__(self) -> None:
        self.used = 0
        self.listed = 0
        self._by_tenant: dict[str, Share] = {}
        # Shares that have an idle entry; at the lowest level are those that hold most.
        self._ranking: Levels[Share] = Levels()

    def __iter__(self) -> Iterator[Entry]:
        """Give all that is listed."""
        for share in self._by_tenant.values():
            yield from share.entries.values()

    def of(self, tenant: str) -> Share:
        """Look at what a tenant holds; an empty share if that is nothing."""
        return self._by_tenant.get(tenant) or Share()

    def find(self, key: EmbeddingKey) -> Entry | None:
        """Find what is listed under a key."""
        share = self._by_tenant.get(key.tenant)
        return None if share is None else share.entries.get(key.embedding_id)

    def take(self, tenant: str, nbytes: int) -> None:
        """Count bytes that a tenant holds from now on."""
        share = self._by_tenant.get(tenant)
        if share is None:
            share = self._by_tenant[tenant] = Share()
        self.used += nbytes
        share.used += nbytes
        self._rank(share)

    def give_back(self, tenant: str, nbytes: int) -> None:
        """Count bytes that a tenant holds no longer."""
        share = self._by_tenant[tenant]
        self.used -= nbytes
        share.used -= nbytes
        self._rank(share)
        if not share.used:
            # Tenants come and go for as long as the server runs.
            del self._by_tenant[tenant]

    def list_entry(self, entry: Entry) -> None:
        """Let an entry, whose bytes are taken, be found; nothing else is listed under its key."""
        share = self._by_tenant[entry.key.tenant]
        entry.listed = True
        share.entries[entry.key.embedding_id] = entry
        self.listed += 1
        if not entry.leases:
            self._count_idle(share, 1)

    def unlist(self, entry: Entry) -> None:
        """Let a listed entry not be found any more; its bytes are still taken."""
        share = self._by_tenant[entry.key.tenant]
        entry.listed = False
        del share.entries[entry.key.embedding_id]
        self.listed -= 1
        if not entry.leases:
            self._count_idle(share, -1)

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

    def victim(self, tenant: str) -> Entry | None:
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

    def _count_idle(self, share: Share, more: int) -> None:
        share.idle += more
        self._rank(share)

    def _rank(self, share: Share) -> None:
        """Put a share where it belongs after a change, behind those that hold as much."""
        if share.level is not None:
            self._ranking.remove(share.level, share)
        share.level = -share.used if share.idle else None
        if share.level is not None:
            self._ranking.add(share.level, share)
