"""The local tier: a byte-bounded LRU cache in the memory of this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from samserve.cache.base import Epoch, not_found
from samserve.cache.local.eviction import Entry, Ranking, TenantUsage, capacity_error, quota_error
from samserve.cache.local.pending import PendingSlots
from samserve.errors import CacheUnavailable, Overloaded
from samserve.memory.anonymous import Allocate, AnonymousMemory, round_up_to_page
from samserve.memory.arena import Arena, slot_bytes
from samserve.memory.slot import Slot
from samserve.types import CacheStats, Embedding, EmbeddingFacts, EmbeddingKey, TensorSpec

# Expired entries that one reservation removes: more than one, so that their number falls; not all,
# so that no call waits for many removals.
_EXPIRED_PER_RESERVE = 4


class LocalCache:
    """An `EmbeddingCache` over arenas, one for each slot size.

    *capacity_bytes* limits all memory: published, being written, deleted but still leased, and
    quarantined.  *quota* returns the bytes that a tenant may use of it, None without a limit.
    *allocate* maps the arenas.  *now* returns seconds since the epoch, because clients get the
    time of expiry.  *on_removed* is called, and must not raise, whenever an embedding stops being
    visible: when it is evicted, expired, deleted, removed, or replaced (then before the new one
    becomes visible); not when the cache is closed.
    """

    def __init__(
        self,
        capacity_bytes: int,
        ttl_s: float,
        *,
        quota: Callable[[str], int | None] = lambda tenant: None,
        allocate: Allocate = AnonymousMemory,
        now: Callable[[], float] = time.time,
        on_removed: Callable[[EmbeddingKey], None] = lambda key: None,
    ) -> None:
        self._capacity = capacity_bytes
        self._ttl_s = ttl_s
        self._now = now
        self._allocate = allocate
        self._quota = quota
        self._on_removed = on_removed
        self._arenas: dict[int, Arena] = {}
        self._usage = TenantUsage()
        # Indexed entries by their expiry.
        self._expiries: Ranking[Entry] = Ranking()
        self._pending = PendingSlots()
        self._quarantined = 0
        self._hits = self._misses = self._evictions = 0

    def check_quota(self, tenant: str, specs: tuple[TensorSpec, ...]) -> None:
        """See `EmbeddingCache.check_quota`."""
        quota = self._quota(tenant)
        if quota is None:
            return
        usage = self._usage.of(tenant)
        wanted = round_up_to_page(slot_bytes(specs))
        if usage.used + wanted > quota and not usage.idle:
            raise quota_error(tenant, quota, wanted)

    async def epoch(self, key: EmbeddingKey) -> Epoch:
        """See `EmbeddingCache.epoch`."""
        return self._pending.epoch

    async def reserve(
        self,
        key: EmbeddingKey,
        facts: EmbeddingFacts,
        specs: tuple[TensorSpec, ...],
        *,
        since: Epoch | None = None,
        transient: bool = False,
    ) -> Slot:
        """See `EmbeddingCache.reserve`."""
        arena = self._arena(slot_bytes(specs))
        self.expire(_EXPIRED_PER_RESERVE)
        self._evict_to_quota(key.tenant, arena)
        self._evict_to_capacity(key.tenant, arena)
        index = arena.allocate()
        if index is None:
            raise capacity_error(self._capacity)
        self._usage.add_bytes(key.tenant, arena.slot_bytes)
        slot = Slot(
            key=key,
            facts=facts,
            tensors=arena.view(index, specs),
            index=index,
            nbytes=arena.slot_bytes,
        )
        if not transient:
            self._pending.add(slot, since)
        return slot

    @asynccontextmanager
    async def publish(
        self, slot: Slot, *, expires_at: float | None = None
    ) -> AsyncIterator[Embedding]:
        """See `EmbeddingCache.publish`.

        *expires_at* is in seconds since the epoch, by default the time to live from now.
        """
        visible = self._pending.remove(slot)
        if visible:
            self.remove(slot.key)
        for tensor in slot.tensors.values():
            tensor.flags.writeable = False
        if expires_at is None:
            expires_at = self._now() + self._ttl_s
        # Not the slot itself, so that the objects that only a writer needs can be freed.
        entry = Entry(slot.key, slot.facts, slot.tensors, slot.index, slot.nbytes, expires_at)
        with self._leased(entry) as embedding:
            if visible:
                self._usage.add_entry(entry)
                self._expiries.put(expires_at, entry)
            yield replace(embedding, revoked=not visible)

    async def discard(self, slot: Slot) -> None:
        """See `EmbeddingCache.discard`."""
        self._pending.remove(slot)
        pending = [write for write in slot.pending_writes if not write.done()]
        if not pending:
            self._free(slot)
            return
        self._quarantined += slot.nbytes
        # The callback keeps the slot alive; the futures keep the callback.
        ended = asyncio.gather(*pending, return_exceptions=True)
        ended.add_done_callback(lambda _: self._end_quarantine(slot))

    def _end_quarantine(self, slot: Slot) -> None:
        self._quarantined -= slot.nbytes
        self._free(slot)

    @asynccontextmanager
    async def lease(
        self,
        key: EmbeddingKey,
        *,
        renew: bool = False,
        durable: bool = False,
        after_miss: bool = False,
        image_sent: bool = False,
    ) -> AsyncIterator[Embedding]:
        """See `EmbeddingCache.lease`.

        With *durable*, raises `CacheUnavailable` for an embedding that is found: this tier does
        not outlive the process.
        """
        entry = self._find(key, counts=not after_miss)
        if durable:
            raise CacheUnavailable("no shared cache is configured: nothing can be durable")
        if renew:
            self._renew(entry)
        with self._leased(entry) as embedding:
            yield embedding

    async def delete(self, key: EmbeddingKey) -> bool:
        """See `EmbeddingCache.delete`."""
        self._pending.delete(key)
        entry = self._usage.find(key)
        self.remove(key)
        return entry is not None and entry.expires_at > self._now()

    def contains(self, key: EmbeddingKey) -> bool:
        """Return whether the key is indexed: its embedding is visible, or was until it expired."""
        return self._usage.find(key) is not None

    def remove(self, key: EmbeddingKey) -> None:
        """Remove the embedding of a key, if there is one; existing leases stay valid.

        Slots that are being written still become visible.
        """
        entry = self._usage.find(key)
        if entry is None:
            return
        self._expiries.discard(entry)
        self._usage.remove_entry(entry)
        self._free_if_unused(entry)
        self._on_removed(key)

    def expire(self, limit: int = 1000) -> int:
        """Remove at most *limit* expired entries, which takes milliseconds; return how many.

        Existing leases stay valid.  Called every few seconds, it frees the memory of embeddings
        that no client requests; when it returns 0, there are none left.
        """
        now = self._now()
        for removed in range(limit):
            first = self._expiries.first()
            if first is None or first[0] > now:
                return removed
            self.remove(first[1].key)
        return limit

    def stats(self) -> CacheStats:
        """See `EmbeddingCache.stats`."""
        return CacheStats(
            entries=self._usage.indexed,
            bytes=self._usage.used,
            quarantined_bytes=self._quarantined,
            capacity_bytes=self._capacity,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    async def aclose(self) -> None:
        """See `EmbeddingCache.aclose`."""
        for entry in self._usage:
            entry.indexed = False  # the end of a lease then frees nothing
        self._usage, self._expiries = TenantUsage(), Ranking()
        self._pending.clear()
        self._arenas.clear()

    def _find(self, key: EmbeddingKey, *, counts: bool) -> Entry:
        entry = self._usage.find(key)
        if entry is not None and entry.expires_at <= self._now():
            self.remove(key)
            entry = None
        if entry is None:
            self._misses += counts
            raise not_found(key)
        self._hits += counts
        self._usage.touch(entry)
        return entry

    def _renew(self, entry: Entry) -> None:
        entry.expires_at = self._now() + self._ttl_s
        self._expiries.put(entry.expires_at, entry)

    @contextmanager
    def _leased(self, entry: Entry) -> Iterator[Embedding]:
        self._usage.add_lease(entry)
        try:
            yield Embedding(entry.tensors, entry.facts, entry.expires_at)
        finally:
            self._usage.remove_lease(entry)
            self._free_if_unused(entry)

    def _arena(self, nbytes: int) -> Arena:
        nbytes = round_up_to_page(nbytes)
        if nbytes not in self._arenas:
            self._arenas[nbytes] = self._map_arena(nbytes)
        return self._arenas[nbytes]

    def _map_arena(self, nbytes: int) -> Arena:
        """Map an arena as large as the capacity; only the first one commits its memory at once."""
        for arena in self._arenas.values():
            arena.release_free_pages()
        first = not self._arenas
        memory = self._allocate(nbytes * max(1, self._capacity // nbytes), commit=first)
        return Arena(memory, nbytes, committed=first)

    def _evict_to_capacity(self, tenant: str, arena: Arena) -> None:
        if arena.slot_bytes > self._capacity:
            raise capacity_error(self._capacity)
        while self._usage.used + arena.slot_bytes > self._capacity:
            self._evict(self._usage.eviction_candidate(tenant), capacity_error(self._capacity))

    def _evict_to_quota(self, tenant: str, arena: Arena) -> None:
        quota = self._quota(tenant)
        if quota is None:
            return
        usage = self._usage.of(tenant)
        while usage.used + arena.slot_bytes > quota:
            self._evict(usage.oldest_idle(), quota_error(tenant, quota, arena.slot_bytes))

    def _evict(self, candidate: Entry | None, error: Overloaded) -> None:
        """Evict *candidate*.  Raises *error* if there is none."""
        if candidate is None:
            raise error
        self.remove(candidate.key)
        self._evictions += 1

    def _free_if_unused(self, entry: Entry) -> None:
        if not entry.indexed and entry.leases == 0:
            self._free(entry)

    def _free(self, owner: Slot | Entry) -> None:
        arena = self._arenas.get(owner.nbytes)
        if arena is None:
            return  # the cache has been closed
        arena.free(owner.index)
        self._usage.remove_bytes(owner.key.tenant, arena.slot_bytes)
        if len(self._arenas) > 1:
            # Another slot size may need these bytes; pages that stay mapped would exceed the
            # capacity.
            arena.release_pages(owner.index)
