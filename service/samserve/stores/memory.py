"""Embeddings in the memory of this process: byte-bounded, least recently used out first."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from samserve.errors import EmbeddingNotFound, Overloaded, QuotaExceeded
from samserve.memory.base import Allocate, AnonymousMemory, round_up_to_page
from samserve.stores.arena import Arena, slot_bytes
from samserve.stores.base import Slot, StoreStats
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, TensorSpec


@dataclass(slots=True, eq=False)
class _Entry:
    slot: Slot
    arena: Arena
    expires_at: float
    leases: int = 0
    listed: bool = True


@dataclass(slots=True, eq=False)
class _Share:
    """What one tenant holds: its part of `_used`, and its published keys, oldest use first."""

    used: int = 0
    keys: OrderedDict[EmbeddingKey, None] = field(default_factory=OrderedDict)


class MemoryStore:
    """An `EmbeddingStore` over arenas, one for each size of slot.

    *capacity_bytes* bounds everything: published, being written, deleted but still leased, and
    quarantined.  *quota* gives the bytes that a tenant may hold of it, None for no such bound.
    *allocate* maps the arenas.  *now* gives seconds since the epoch, because expiry is told to
    clients.
    """

    def __init__(
        self,
        capacity_bytes: int,
        ttl_s: float,
        *,
        quota: Callable[[str], int | None] = lambda tenant: None,
        allocate: Allocate = AnonymousMemory,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._capacity = capacity_bytes
        self._ttl_s = ttl_s
        self._now = now
        self._allocate = allocate
        self._quota = quota
        # Published entries, least recently used first.
        self._entries: OrderedDict[EmbeddingKey, _Entry] = OrderedDict()
        self._arenas: dict[int, Arena] = {}
        self._used = self._quarantined = 0
        self._shares: defaultdict[str, _Share] = defaultdict(_Share)
        self._hits = self._misses = self._evictions = 0

    def check_room(self, tenant: str, specs: tuple[TensorSpec, ...]) -> None:
        """See `EmbeddingStore.check_room`."""
        quota = self._quota(tenant)
        if quota is None:
            return
        share = self._shares.get(tenant, _Share())
        wanted = round_up_to_page(slot_bytes(specs))
        if share.used + wanted > quota and self._idle(share.keys) is None:
            raise _over_quota(tenant, quota, wanted)

    async def reserve(
        self, key: EmbeddingKey, facts: EmbeddingFacts, specs: tuple[TensorSpec, ...]
    ) -> Slot:
        """See `EmbeddingStore.reserve`."""
        arena = self._arena(slot_bytes(specs))
        self._make_room_within_quota(key.tenant, arena)
        self._make_room(key.tenant, arena)
        index = arena.allocate()
        if index is None:
            raise _full(self._capacity)
        self._used += arena.slot_bytes
        self._shares[key.tenant].used += arena.slot_bytes
        return Slot(
            key=key,
            facts=facts,
            tensors=arena.view(index, specs),
            index=index,
            nbytes=arena.slot_bytes,
        )

    async def publish(self, slot: Slot) -> None:
        """See `EmbeddingStore.publish`."""
        self._unlist(slot.key)
        for tensor in slot.tensors.values():
            tensor.flags.writeable = False
        entry = _Entry(slot, self._arenas[slot.nbytes], self._now() + self._ttl_s)
        self._entries[slot.key] = entry
        self._shares[slot.key.tenant].keys[slot.key] = None

    async def discard(self, slot: Slot) -> None:
        """See `EmbeddingStore.discard`."""
        arena = self._arenas.get(slot.nbytes)
        if arena is None:
            return  # the store was closed while the slot was being written
        writing = [writer for writer in slot.late_writers if not writer.done()]
        if not writing:
            self._free(slot, arena)
            return
        self._quarantined += slot.nbytes
        # The callback keeps the slot alive; the futures keep the callback.
        ended = asyncio.gather(*writing, return_exceptions=True)
        ended.add_done_callback(lambda _: self._end_quarantine(slot, arena))

    def _end_quarantine(self, slot: Slot, arena: Arena) -> None:
        self._quarantined -= slot.nbytes
        self._free(slot, arena)

    @asynccontextmanager
    async def lease(
        self, key: EmbeddingKey, *, renew: bool = False, again: bool = False
    ) -> AsyncIterator[Embedding]:
        """See `EmbeddingStore.lease`."""
        entry = self._find(key, counts=not again)
        if renew:
            entry.expires_at = self._now() + self._ttl_s
        entry.leases += 1
        try:
            yield Embedding(entry.slot.tensors, entry.slot.facts, entry.expires_at)
        finally:
            entry.leases -= 1
            self._free_if_unused(entry)

    async def delete(self, key: EmbeddingKey) -> bool:
        """See `EmbeddingStore.delete`."""
        entry = self._entries.get(key)
        self._unlist(key)
        return entry is not None and entry.expires_at > self._now()

    def stats(self) -> StoreStats:
        """See `EmbeddingStore.stats`."""
        return StoreStats(
            entries=len(self._entries),
            bytes=self._used,
            quarantined_bytes=self._quarantined,
            capacity_bytes=self._capacity,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    async def aclose(self) -> None:
        """See `EmbeddingStore.aclose`."""
        self._entries.clear()
        self._shares.clear()
        self._arenas.clear()

    def _find(self, key: EmbeddingKey, *, counts: bool) -> _Entry:
        entry = self._entries.get(key)
        if entry is not None and entry.expires_at <= self._now():
            self._unlist(key)
            entry = None
        if entry is None:
            self._misses += counts
            raise EmbeddingNotFound(
                "the embedding is unknown, has expired or was evicted; embed the image again",
                metadata={"embedding_id": key.embedding_id},
            )
        self._hits += counts
        self._entries.move_to_end(key)
        self._shares[key.tenant].keys.move_to_end(key)
        return entry

    def _arena(self, nbytes: int) -> Arena:
        nbytes = round_up_to_page(nbytes)
        if nbytes not in self._arenas:
            self._arenas[nbytes] = self._map_arena(nbytes)
        return self._arenas[nbytes]

    def _map_arena(self, nbytes: int) -> Arena:
        """Map an arena as large as the capacity; only the first one takes its memory at once."""
        for arena in self._arenas.values():
            arena.release_free_pages()
        first = not self._arenas
        memory = self._allocate(nbytes * max(1, self._capacity // nbytes), commit=first)
        return Arena(memory, nbytes, committed=first)

    def _make_room(self, tenant: str, arena: Arena) -> None:
        if arena.slot_bytes > self._capacity:
            raise _full(self._capacity)
        while self._used + arena.slot_bytes > self._capacity:
            self._evict(self._victim(tenant), _full(self._capacity))

    def _victim(self, tenant: str) -> EmbeddingKey | None:
        """Choose what goes: the oldest of who holds most, so that a flood drives out its own.

        No tenant loses anything to one that holds more than it does.
        """
        mine = self._shares[tenant].used if tenant in self._shares else 0
        shares = sorted(self._shares.items(), key=lambda item: (item[1].used, item[0] == tenant))
        for _, share in reversed(shares):
            if share.used < mine:
                break
            victim = self._idle(share.keys)
            if victim is not None:
                return victim
        return None

    def _make_room_within_quota(self, tenant: str, arena: Arena) -> None:
        quota = self._quota(tenant)
        if quota is None:
            return
        share = self._shares.get(tenant, _Share())
        while share.used + arena.slot_bytes > quota:
            self._evict(self._idle(share.keys), _over_quota(tenant, quota, arena.slot_bytes))

    def _evict(self, victim: EmbeddingKey | None, otherwise: Overloaded) -> None:
        if victim is None:
            raise otherwise
        self._unlist(victim)
        self._evictions += 1

    def _idle(self, keys: Iterable[EmbeddingKey]) -> EmbeddingKey | None:
        """Find the first that nobody holds."""
        return next((key for key in keys if self._entries[key].leases == 0), None)

    def _unlist(self, key: EmbeddingKey) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._shares[key.tenant].keys.pop(key)
        entry.listed = False
        self._free_if_unused(entry)

    def _free_if_unused(self, entry: _Entry) -> None:
        if not entry.listed and entry.leases == 0:
            self._free(entry.slot, entry.arena)

    def _free(self, slot: Slot, arena: Arena) -> None:
        arena.free(slot.index)
        self._used -= arena.slot_bytes
        self._leave_share(slot.key.tenant, arena.slot_bytes)
        if len(self._arenas) > 1:
            # Another size of slot may need these bytes; kept pages would exceed the capacity.
            arena.release_pages(slot.index)

    def _leave_share(self, tenant: str, nbytes: int) -> None:
        share = self._shares[tenant]
        share.used -= nbytes
        if not share.used:
            # Tenants come and go for as long as the server runs.
            del self._shares[tenant]


def _over_quota(tenant: str, quota: int, wanted: int) -> QuotaExceeded:
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


def _full(capacity: int) -> Overloaded:
    return Overloaded(
        f"the embedding store is full of embeddings in use (capacity {capacity} bytes)",
        metadata={"capacity_bytes": str(capacity)},
    )
