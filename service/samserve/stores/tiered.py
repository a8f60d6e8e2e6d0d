"""Two tiers: the memory of this process, and the cache that all gateways share.

Memory is written first and read first.  The shared cache makes an embedding found by every gateway
and outlive this one; while it is away, memory goes on alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from samserve.errors import EmbeddingNotFound, Overloaded, SamserveError, StoreUnavailable
from samserve.memory.slot import Slot
from samserve.scheduling.single_flight import SingleFlight
from samserve.stores.base import Epoch, not_found
from samserve.stores.local.store import MemoryStore
from samserve.stores.shared import value_format
from samserve.stores.shared.presence import SharedPresence
from samserve.stores.shared.store import Outcome, Presence, SharedCache
from samserve.stores.shared.value_format import Value
from samserve.types import (
    Embedding,
    EmbeddingFacts,
    EmbeddingKey,
    ModelInfo,
    StoreStats,
    TensorSpec,
    Tier,
)

_MOST_REFILLS = 8


@dataclass(frozen=True, slots=True)
class _Epoch:
    """That of memory, and the marker of a deletion that is in force in the shared cache."""

    memory: Epoch
    marker: bytes


class TieredStore:
    """An `EmbeddingStore` over a `MemoryStore` and a `SharedCache`.

    *copies* is what *memory* tells of embeddings that it forgets.  *served* gives the models that
    are served now: values of others are not read into memory.  *ttl_s* is the time to live in both
    tiers.
    """

    def __init__(
        self,
        memory: MemoryStore,
        copies: SharedPresence,
        cache: SharedCache,
        served: Callable[[], Mapping[str, ModelInfo]],
        ttl_s: float,
    ) -> None:
        self._memory = memory
        self._copies = copies
        self._cache = cache
        self._served = served
        self._ttl_s = ttl_s
        # Deletions that were in force when a slot was reserved.
        self._markers: dict[Slot, bytes] = {}
        self._loads: SingleFlight[EmbeddingKey, Embedding] = SingleFlight()
        self._checks: SingleFlight[EmbeddingKey, Presence] = SingleFlight()
        self._refills: set[asyncio.Task[None]] = set()

    def check_room(self, tenant: str, specs: tuple[TensorSpec, ...]) -> None:
        """See `EmbeddingStore.check_room`."""
        self._memory.check_room(tenant, specs)

    async def epoch(self, key: EmbeddingKey) -> Epoch:
        """See `EmbeddingStore.epoch`."""
        here = await self._memory.epoch(key)
        try:
            return _Epoch(here, await self._cache.deletion_marker(key))
        except StoreUnavailable:
            # Then only a key without any deletion is written.
            return _Epoch(here, b"")

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
        if transient:
            return await self._memory.reserve(key, facts, specs, transient=True)
        epoch = since if isinstance(since, _Epoch) else await self.epoch(key)
        assert isinstance(epoch, _Epoch)
        slot = await self._memory.reserve(key, facts, specs, since=epoch.memory)
        if epoch.marker:
            self._markers[slot] = epoch.marker
        return slot

    @asynccontextmanager
    async def publish(self, slot: Slot) -> AsyncIterator[Embedding]:
        """See `EmbeddingStore.publish`."""
        marker = self._markers.pop(slot, b"")
        async with AsyncExitStack() as held:
            mine = await held.enter_async_context(self._memory.publish(slot))
            if mine.revoked:
                yield mine
                return
            asked_at = self._copies.now()
            try:
                outcome = await self._put(slot.key, mine, self._ttl_s, marker=marker)
            except StoreUnavailable:
                outcome = Outcome(Presence.ABSENT)
            self._record_presence(slot.key, asked_at, outcome.presence)
            if outcome.presence is Presence.STORED and not outcome.same:
                yield await self._adopt(held, slot.key) or mine
                return
            yield replace(
                mine,
                shared=outcome.presence is Presence.STORED,
                revoked=outcome.presence is Presence.DELETED,
            )

    async def discard(self, slot: Slot) -> None:
        """See `EmbeddingStore.discard`."""
        self._markers.pop(slot, None)
        await self._memory.discard(slot)

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

        With *again*, only memory is looked into.  Raises `StoreUnavailable` if the embedding is
        not in memory and the shared cache cannot tell, and if it could not for so long that what
        is in memory may have been deleted.
        """
        async with AsyncExitStack() as held:
            embedding = await self._hold(held, key, renew=renew, again=again)
            try:
                presence = await self._check_presence(key, embedding, renew=renew, durable=durable)
            except StoreUnavailable:
                if durable:
                    raise
                # Who sends the image may have it embedded in any case, and so others use it again.
                self._copies.use_unseen(key, image_sent=image_sent)
                presence = None
            if presence is Presence.DELETED:
                raise not_found(key)
            yield replace(embedding, shared=presence is Presence.STORED)

    async def delete(self, key: EmbeddingKey) -> bool:
        """See `EmbeddingStore.delete`."""
        here = await self._memory.delete(key)
        self._loads.detach(key)
        try:
            there = await self._cache.delete(key, self._ttl_s)
        except StoreUnavailable:
            raise StoreUnavailable(
                "deleted on this gateway only: the shared cache is away, and others may find the "
                "embedding until it expires; delete it again"
            ) from None
        # Also what was read from the cache before it knew, or is read still.
        await self._memory.delete(key)
        return here or there

    def stats(self) -> StoreStats:
        """See `EmbeddingStore.stats`; of memory."""
        return self._memory.stats()

    def expire(self) -> int:
        """See `MemoryStore.expire`."""
        return self._memory.expire()

    async def aclose(self) -> None:
        """See `EmbeddingStore.aclose`; what is being written to the shared cache is given up."""
        for task in self._refills:
            task.cancel()
        await asyncio.gather(*self._refills, return_exceptions=True)
        await self._memory.aclose()

    async def _hold(
        self, held: AsyncExitStack, key: EmbeddingKey, *, renew: bool, again: bool
    ) -> Embedding:
        try:
            lease = self._memory.lease(key, renew=renew, again=again)
            return await held.enter_async_context(lease)
        except EmbeddingNotFound:
            if again:
                raise
        flight = self._loads.join(key, partial(self._load, key))
        embedding, _ = await held.enter_async_context(flight)
        if renew:
            with suppress(EmbeddingNotFound):  # deleted meanwhile
                lease = self._memory.lease(key, renew=True, again=True)
                embedding = await held.enter_async_context(lease)
        return replace(embedding, tier=Tier.SHARED)

    @asynccontextmanager
    async def _load(self, key: EmbeddingKey) -> AsyncIterator[Embedding]:
        """Read an embedding into memory and hold it; runs for all that ask meanwhile.

        If it is deleted here meanwhile, it is revoked.
        """
        asked_at, epoch = self._copies.now(), await self._memory.epoch(key)
        found = await self._cache.get(key, self._usable)
        value = found.value
        slot = await self._memory.reserve(key, value.facts, value.specs, since=epoch)
        try:
            value.copy_into(slot.tensors)
        except BaseException:
            await self._memory.discard(slot)
            raise
        expires_at = None if found.ttl_s is None else time.time() + found.ttl_s
        async with self._memory.publish(slot, expires_at=expires_at) as embedding:
            if not embedding.revoked:
                self._record_presence(key, asked_at, Presence.STORED)
            yield embedding

    def _usable(self, value: Value) -> bool:
        """Return whether the value is of a model that is served here, exactly as it is served."""
        model = self._served().get(value.facts.model_name)
        return model is not None and value.facts.made_by(model) and value.specs == model.embedding

    async def _check_presence(
        self, key: EmbeddingKey, embedding: Embedding, *, renew: bool, durable: bool
    ) -> Presence:
        """Learn what others find.  Raises `StoreUnavailable` if that cannot be known."""
        if renew or durable:
            return await self._renew(key, embedding, durable=durable)
        fresh = self._copies.fresh(key)
        if fresh is not None:
            return Presence.STORED if fresh else Presence.ABSENT
        async with self._checks.join(key, partial(self._check, key)) as (presence, _):
            return presence

    @asynccontextmanager
    async def _check(self, key: EmbeddingKey) -> AsyncIterator[Presence]:
        asked_at = self._copies.now()
        presence = await self._cache.check(key)
        self._record_presence(key, asked_at, presence)
        room = len(self._refills) < _MOST_REFILLS
        if presence is Presence.ABSENT and room and self._copies.claim_rewrite(key):
            task = asyncio.create_task(self._refill(key))
            self._refills.add(task)
            task.add_done_callback(self._refills.discard)
        yield presence

    async def _renew(self, key: EmbeddingKey, embedding: Embedding, *, durable: bool) -> Presence:
        asked_at = self._copies.now()
        presence = await self._cache.renew(key, self._ttl_s, durable=durable)
        if presence is Presence.ABSENT:
            outcome = await self._put(key, embedding, self._ttl_s, durable=durable)
            presence = outcome.presence
        self._record_presence(key, asked_at, presence)
        return presence

    async def _put(
        self,
        key: EmbeddingKey,
        embedding: Embedding,
        ttl_s: float,
        *,
        marker: bytes = b"",
        durable: bool = False,
    ) -> Outcome:
        data = value_format.encode(self._cache.name(key), embedding.facts, embedding.tensors)
        return await self._cache.put(key, data, ttl_s, marker=marker, durable=durable)

    async def _adopt(self, held: AsyncExitStack, key: EmbeddingKey) -> Embedding | None:
        """Go on with what another gateway has stored meanwhile, so that all answer the same."""
        with suppress(EmbeddingNotFound, StoreUnavailable, Overloaded):
            theirs = await held.enter_async_context(self._load(key))
            return replace(theirs, shared=True)
        return None

    async def _refill(self, key: EmbeddingKey) -> None:
        """Write an embedding that the shared cache has lost."""
        with suppress(SamserveError):
            async with self._memory.lease(key, again=True) as embedding:
                asked_at = self._copies.now()
                left_s = embedding.expires_at - time.time()
                outcome = await self._put(key, embedding, left_s)
            self._record_presence(key, asked_at, outcome.presence)

    def _record_presence(self, key: EmbeddingKey, seen_at: float, presence: Presence) -> None:
        """Remember what was seen, and take what is deleted out of memory."""
        if presence is Presence.DELETED:
            self._memory.drop(key)
        elif self._memory.lists(key):
            self._copies.note(key, seen_at, present=presence is Presence.STORED)
