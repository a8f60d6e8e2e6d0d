"""The cache with two tiers: local in this process, shared by all gateways.

The local tier is written first and read first.  The shared tier makes an embedding available to
every gateway and lets it outlive this process; while it is unavailable, the local tier works alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from samserve.cache.base import Epoch, not_found
from samserve.cache.local.cache import LocalCache
from samserve.cache.shared import value_format
from samserve.cache.shared.cache import Presence, PutResult, SharedCache
from samserve.cache.shared.presence import SharedPresence
from samserve.cache.shared.value_format import Value
from samserve.errors import CacheUnavailable, EmbeddingNotFound, Overloaded, SamserveError
from samserve.memory.slot import Slot
from samserve.scheduling.offload import copying
from samserve.scheduling.single_flight import SingleFlight
from samserve.types import (
    CacheStats,
    Embedding,
    EmbeddingFacts,
    EmbeddingKey,
    ModelInfo,
    TensorSpec,
    Tier,
)

_MAX_REWRITES = 8


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The epoch of the local tier, and the deletion marker of the shared tier (empty if none)."""

    local: Epoch
    marker: bytes


class TieredCache:
    """An `EmbeddingCache` over a `LocalCache` and a `SharedCache`.

    *local* must report the embeddings that it removes to *presence*.  *served* returns the models
    that are served now: values of other models are not loaded into the local tier.  *ttl_s* is the
    time to live in both tiers.
    """

    def __init__(
        self,
        local: LocalCache,
        presence: SharedPresence,
        shared: SharedCache,
        served: Callable[[], Mapping[str, ModelInfo]],
        ttl_s: float,
    ) -> None:
        self._local = local
        self._presence = presence
        self._shared = shared
        self._served = served
        self._ttl_s = ttl_s
        # Deletion markers of the shared tier when each slot was reserved.
        self._markers: dict[Slot, bytes] = {}
        self._loads: SingleFlight[EmbeddingKey, Embedding] = SingleFlight()
        self._checks: SingleFlight[EmbeddingKey, Presence] = SingleFlight()
        self._rewrites: set[asyncio.Task[None]] = set()

    def check_quota(self, tenant: str, specs: tuple[TensorSpec, ...]) -> None:
        """See `EmbeddingCache.check_quota`."""
        self._local.check_quota(tenant, specs)

    async def epoch(self, key: EmbeddingKey) -> Epoch:
        """See `EmbeddingCache.epoch`."""
        local = await self._local.epoch(key)
        try:
            return _Epoch(local, await self._shared.deletion_marker(key))
        except CacheUnavailable:
            # `put` then writes only if there is no deletion marker.
            return _Epoch(local, b"")

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
        if transient:
            return await self._local.reserve(key, facts, specs, transient=True)
        epoch = since if isinstance(since, _Epoch) else await self.epoch(key)
        assert isinstance(epoch, _Epoch)
        slot = await self._local.reserve(key, facts, specs, since=epoch.local)
        if epoch.marker:
            self._markers[slot] = epoch.marker
        return slot

    @asynccontextmanager
    async def publish(self, slot: Slot) -> AsyncIterator[Embedding]:
        """See `EmbeddingCache.publish`."""
        marker = self._markers.pop(slot, b"")
        async with AsyncExitStack() as stack:
            written = await stack.enter_async_context(self._local.publish(slot))
            if written.revoked:
                yield written
                return
            checked_at = self._presence.now()
            try:
                result = await self._put(slot.key, written, self._ttl_s, marker=marker)
            except CacheUnavailable:
                result = PutResult(Presence.ABSENT)
            self._record_presence(slot.key, checked_at, result.presence)
            if result.presence is Presence.STORED and not result.own_value:
                yield await self._adopt(stack, slot.key) or written
                return
            yield replace(
                written,
                shared=result.presence is Presence.STORED,
                revoked=result.presence is Presence.DELETED,
            )

    async def discard(self, slot: Slot) -> None:
        """See `EmbeddingCache.discard`."""
        self._markers.pop(slot, None)
        await self._local.discard(slot)

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

        With *after_miss*, only the local tier is read.  Raises `CacheUnavailable` during an
        outage of the shared tier: if the embedding is not in the local tier, or if deletions have
        been unknown for longer than ``cache.shared.stale_if_error_s``.
        """
        async with AsyncExitStack() as stack:
            embedding = await self._lease_or_load(stack, key, renew=renew, after_miss=after_miss)
            try:
                presence = await self._check_presence(key, embedding, renew=renew, durable=durable)
            except CacheUnavailable:
                if durable:
                    raise
                # A caller with the image could have it embedded again in any case.
                self._presence.require_recent_confirmation(key, image_sent=image_sent)
                presence = None
            if presence is Presence.DELETED:
                raise not_found(key)
            yield replace(embedding, shared=presence is Presence.STORED)

    async def delete(self, key: EmbeddingKey) -> bool:
        """See `EmbeddingCache.delete`."""
        in_local = await self._local.delete(key)
        self._loads.detach(key)
        try:
            in_shared = await self._shared.delete(key, self._ttl_s)
        except CacheUnavailable:
            raise CacheUnavailable(
                "deleted on this gateway only: the shared cache is unavailable, and other gateways "
                "may find the embedding until it expires; delete it again"
            ) from None
        # Again: a read of the shared tier may have loaded it before the deletion was written.
        await self._local.delete(key)
        return in_local or in_shared

    def stats(self) -> CacheStats:
        """See `EmbeddingCache.stats`; of the local tier."""
        return self._local.stats()

    def expire(self) -> int:
        """See `LocalCache.expire`."""
        return self._local.expire()

    async def aclose(self) -> None:
        """See `EmbeddingCache.aclose`; pending rewrites of the shared tier are cancelled."""
        for task in self._rewrites:
            task.cancel()
        await asyncio.gather(*self._rewrites, return_exceptions=True)
        await self._local.aclose()

    async def _lease_or_load(
        self, stack: AsyncExitStack, key: EmbeddingKey, *, renew: bool, after_miss: bool
    ) -> Embedding:
        try:
            lease = self._local.lease(key, renew=renew, after_miss=after_miss)
            return await stack.enter_async_context(lease)
        except EmbeddingNotFound:
            if after_miss:
                raise
        flight = self._loads.join(key, partial(self._load, key))
        embedding, _ = await stack.enter_async_context(flight)
        if renew:
            with suppress(EmbeddingNotFound):  # deleted meanwhile
                lease = self._local.lease(key, renew=True, after_miss=True)
                embedding = await stack.enter_async_context(lease)
        return replace(embedding, tier=Tier.SHARED)

    @asynccontextmanager
    async def _load(self, key: EmbeddingKey) -> AsyncIterator[Embedding]:
        """Load an embedding into the local tier and lease it; concurrent callers share the load.

        It is revoked if it is deleted on this gateway meanwhile.
        """
        checked_at, epoch = self._presence.now(), await self._local.epoch(key)
        cached = await self._shared.get(key, self._usable)
        value = cached.value
        slot = await self._local.reserve(key, value.facts, value.specs, since=epoch)
        copied = asyncio.create_task(copying(slot.nbytes, value.copy_into, slot.tensors))
        slot.pending_writes.append(copied)
        try:
            # A cancelled call does not stop the thread that writes to the slot.
            await asyncio.shield(copied)
        except BaseException:
            await self._local.discard(slot)
            raise
        expires_at = None if cached.ttl_s is None else time.time() + cached.ttl_s
        async with self._local.publish(slot, expires_at=expires_at) as embedding:
            if not embedding.revoked:
                self._record_presence(key, checked_at, Presence.STORED)
            yield embedding

    def _usable(self, value: Value) -> bool:
        """Return whether the value is of a model, weights and layout that are served here."""
        model = self._served().get(value.facts.model_name)
        return (
            model is not None and value.facts.computed_by(model) and value.specs == model.embedding
        )

    async def _check_presence(
        self, key: EmbeddingKey, embedding: Embedding, *, renew: bool, durable: bool
    ) -> Presence:
        """Return the state of the shared tier.  Raises `CacheUnavailable` if it is unknown."""
        if renew or durable:
            return await self._renew(key, embedding, durable=durable)
        known = self._presence.known(key)
        if known is not None:
            return Presence.STORED if known else Presence.ABSENT
        async with self._checks.join(key, partial(self._check, key)) as (presence, _):
            return presence

    @asynccontextmanager
    async def _check(self, key: EmbeddingKey) -> AsyncIterator[Presence]:
        checked_at = self._presence.now()
        presence = await self._shared.check(key)
        self._record_presence(key, checked_at, presence)
        below_limit = len(self._rewrites) < _MAX_REWRITES
        if presence is Presence.ABSENT and below_limit and self._presence.claim_rewrite(key):
            task = asyncio.create_task(self._rewrite(key))
            self._rewrites.add(task)
            task.add_done_callback(self._rewrites.discard)
        yield presence

    async def _renew(self, key: EmbeddingKey, embedding: Embedding, *, durable: bool) -> Presence:
        checked_at = self._presence.now()
        presence = await self._shared.renew(key, self._ttl_s, durable=durable)
        if presence is Presence.ABSENT:
            result = await self._put(key, embedding, self._ttl_s, durable=durable)
            presence = result.presence
        self._record_presence(key, checked_at, presence)
        return presence

    async def _put(
        self,
        key: EmbeddingKey,
        embedding: Embedding,
        ttl_s: float,
        *,
        marker: bytes = b"",
        durable: bool = False,
    ) -> PutResult:
        nbytes = sum(tensor.nbytes for tensor in embedding.tensors.values())
        name, facts = self._shared.name(key), embedding.facts
        # If the call is cancelled, the slot may be reused meanwhile; the value is then discarded.
        data = await copying(nbytes, value_format.encode, name, facts, embedding.tensors)
        return await self._shared.put(key, data, ttl_s, marker=marker, durable=durable)

    async def _adopt(self, stack: AsyncExitStack, key: EmbeddingKey) -> Embedding | None:
        """Use the embedding that another gateway stored first, so that all gateways agree."""
        with suppress(EmbeddingNotFound, CacheUnavailable, Overloaded):
            stored = await stack.enter_async_context(self._load(key))
            return replace(stored, shared=True)
        return None

    async def _rewrite(self, key: EmbeddingKey) -> None:
        """Write an embedding that the shared tier has lost."""
        with suppress(SamserveError):
            async with self._local.lease(key, after_miss=True) as embedding:
                checked_at = self._presence.now()
                remaining_s = embedding.expires_at - time.time()
                result = await self._put(key, embedding, remaining_s)
            self._record_presence(key, checked_at, result.presence)

    def _record_presence(self, key: EmbeddingKey, checked_at: float, presence: Presence) -> None:
        """Record the state of the shared tier; remove a deleted embedding from the local tier."""
        if presence is Presence.DELETED:
            self._local.remove(key)
        elif self._local.contains(key):
            self._presence.record(key, checked_at, present=presence is Presence.STORED)
