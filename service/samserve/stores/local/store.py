"""Embeddings in the memory of this process: byte-bounded, least recently used out first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

from samserve.errors import Overloaded, StoreUnavailable
from samserve.memory.anonymous import Allocate, AnonymousMemory, round_up_to_page
from samserve.memory.arena import Arena, slot_bytes
from samserve.memory.slot import Slot
from samserve.stores.base import Epoch, not_found
from samserve.stores.local.eviction import Entry, Ranking, TenantUsage, full, over_quota
from samserve.stores.local.pending import PendingSlots
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, StoreStats, TensorSpec

# How many expired entries one new one removes: more than one, so that they become fewer; not all,
# so that no call waits for many.
_EXPIRED_PER_RESERVE = 4


class MemoryStore:
    """An `EmbeddingStore` over arenas, one for each size of slot.

    *capacity_bytes* bounds everything: published, being written, deleted but still leased, and
    quarantined.  *quota* gives the bytes that a tenant may hold of it, None for no such bound.
    *allocate* maps the arenas.  *now* gives seconds since the epoch, because clients get the time
    of expiry.  *forgotten* is called, and must not raise, whenever an embedding stops being
    visible: evicted, expired, deleted, dropped, or replaced, then before the new one is visible;
    not at the end.
    """

    def __init__(
        self,
        capacity_bytes: int,
        ttl_s: float,
        *,
        quota: Callable[[str], int | None] = lambda tenant: None,
        allocate: Allocate = AnonymousMemory,
        now: Callable[[], float] = time.time,
        forgotten: Callable[[EmbeddingKey], None] = lambda key: None,
    ) -> None:
        self._capacity = capacity_bytes
        self._ttl_s = ttl_s
        self._now = now
        self._allocate = allocate
        self._quota = quota
        self._forgotten = forgotten
        self._arenas: dict[int, Arena] = {}
        self._usage = TenantUsage()
        # Listed entries by the time of their expiry.
        self._expiries: Ranking[Entry] = Ranking()
        self._pending = PendingSlots()
        self._quarantined = 0
        self._hits = self._misses = self._evictions = 0

    def check_room(self, tenant: str, specs: tuple[TensorSpec, ...]) -> None:
        """See `EmbeddingStore.check_room`."""
        quota = self._quota(tenant)
        if quota is None:
            return
        usage = self._usage.of(tenant)
        wanted = round_up_to_page(slot_bytes(specs))
        if usage.used + wanted > quota and not usage.idle:
            raise over_quota(tenant, quota, wanted)

    async def epoch(self, key: EmbeddingKey) -> Epoch:
        """See `EmbeddingStore.epoch`."""
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
        """See `EmbeddingStore.reserve`."""
        arena = self._arena(slot_bytes(specs))
        self.expire(_EXPIRED_PER_RESERVE)
        self._make_room_within_quota(key.tenant, arena)
        self._make_room(key.tenant, arena)
        index = arena.allocate()
        if index is None:
            raise full(self._capacity)
        self._usage.take(key.tenant, arena.slot_bytes)
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
        """See `EmbeddingStore.publish`.

        *expires_at* is in seconds since the epoch, by default the time to live from now.
        """
        visible = self._pending.remove(slot)
        if visible:
            self.drop(slot.key)
        for tensor in slot.tensors.values():
            tensor.flags.writeable = False
        if expires_at is None:
            expires_at = self._now() + self._ttl_s
        # Not the slot itself: its owner lets go of it, and of what only a writer needs.
        entry = Entry(slot.key, slot.facts, slot.tensors, slot.index, slot.nbytes, expires_at)
        with self._held(entry) as embedding:
            if visible:
                self._usage.list_entry(entry)
                self._expiries.put(expires_at, entry)
            yield replace(embedding, revoked=not visible)

    async def discard(self, slot: Slot) -> None:
        """See `EmbeddingStore.discard`."""
        self._pending.remove(slot)
        writing = [writer for writer in slot.late_writers if not writer.done()]
        if not writing:
            self._free(slot)
            return
        self._quarantined += slot.nbytes
        # The callback keeps the slot alive; the futures keep the callback.
        ended = asyncio.gather(*writing, return_exceptions=True)
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
        again: bool = False,
        image_sent: bool = False,
    ) -> AsyncIterator[Embedding]:
        """See `EmbeddingStore.lease`.

        Raises `StoreUnavailable` with *durable* for what is found: this store dies with its
        process.
        """
        entry = self._find(key, counts=not again)
        if durable:
            raise StoreUnavailable("no shared cache is configured: nothing can be durable")
        if renew:
            self._renew(entry)
        with self._held(entry) as embedding:
            yield embedding

    async def delete(self, key: EmbeddingKey) -> bool:
        """See `EmbeddingStore.delete`."""
        self._pending.delete(key)
        entry = self._usage.find(key)
        self.drop(key)
        return entry is not None and entry.expires_at > self._now()

    def lists(self, key: EmbeddingKey) -> bool:
        """Return whether an embedding is visible, or was until it expired."""
        return self._usage.find(key) is not None

    def drop(self, key: EmbeddingKey) -> None:
        """Let an embedding not be found any more, if there is one; leases that are held stay valid.

        Slots that are being written will be visible.
        """
        entry = self._usage.find(key)
        if entry is None:
            return
        self._expiries.discard(entry)
        self._usage.unlist(entry)
        self._free_if_unused(entry)
        self._forgotten(key)

    def expire(self, most: int = 1000) -> int:
        """Remove expired entries, at most that many, which takes milliseconds; count them.

        Leases that are held stay valid.  Called every few seconds it frees the memory of what
        is not asked for; call it until it returns 0 to have all of it gone.
        """
        now = self._now()
        for removed in range(most):
            first = self._expiries.first()
            if first is None or first[0] > now:
                return removed
            self.drop(first[1].key)
        return most

    def stats(self) -> StoreStats:
        """See `EmbeddingStore.stats`."""
        return StoreStats(
            entries=self._usage.listed,
            bytes=self._usage.used,
            quarantined_bytes=self._quarantined,
            capacity_bytes=self._capacity,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
        )

    async def aclose(self) -> None:
        """See `EmbeddingStore.aclose`."""
        for entry in self._usage:
            entry.listed = False  # leases that are held end without a trace
        self._usage, self._expiries = TenantUsage(), Ranking()
        self._pending.clear()
        self._arenas.clear()

    def _find(self, key: EmbeddingKey, *, counts: bool) -> Entry:
        entry = self._usage.find(key)
        if entry is not None and entry.expires_at <= self._now():
            self.drop(key)
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
    def _held(self, entry: Entry) -> Iterator[Embedding]:
        self._usage.hold(entry)
        try:
            yield Embedding(entry.tensors, entry.facts, entry.expires_at)
        finally:
            self._usage.let_go(entry)
            self._free_if_unused(entry)

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
            raise full(self._capacity)
        while self._usage.used + arena.slot_bytes > self._capacity:
            self._evict(self._usage.eviction_candidate(tenant), full(self._capacity))

    def _make_room_within_quota(self, tenant: str, arena: Arena) -> None:
        quota = self._quota(tenant)
        if quota is None:
            return
        usage = self._usage.of(tenant)
        while usage.used + arena.slot_bytes > quota:
            self._evict(usage.oldest_idle(), over_quota(tenant, quota, arena.slot_bytes))

    def _evict(self, victim: Entry | None, otherwise: Overloaded) -> None:
        if victim is None:
            raise otherwise
        self.drop(victim.key)
        self._evictions += 1

    def _free_if_unused(self, entry: Entry) -> None:
        if not entry.listed and entry.leases == 0:
            self._free(entry)

    def _free(self, holder: Slot | Entry) -> None:
        arena = self._arenas.get(holder.nbytes)
        if arena is None:
            return  # the store was closed meanwhile
        arena.free(holder.index)
        self._usage.give_back(holder.key.tenant, arena.slot_bytes)
        if len(self._arenas) > 1:
            # Another size of slot may need these bytes; kept pages would exceed the capacity.
            arena.release_pages(holder.index)
