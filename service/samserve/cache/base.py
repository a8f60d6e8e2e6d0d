"""The port of the embedding cache: reserve, publish, lease and delete embeddings."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from samserve.errors import EmbeddingNotFound
from samserve.memory.slot import Slot
from samserve.types import CacheStats, Embedding, EmbeddingFacts, EmbeddingKey, TensorSpec

Epoch: TypeAlias = object
"""What `EmbeddingCache.epoch` returns; opaque to callers."""


class EmbeddingCache(Protocol):
    """Stores embeddings by key, bounded in bytes; used from one event loop.

    A miss raises `EmbeddingNotFound`.  An outage raises `CacheUnavailable` and is never reported
    as a miss, because a client uploads its image again after a miss.
    """

    def check_quota(self, tenant: str, specs: tuple[TensorSpec, ...]) -> None:
        """Raise `QuotaExceeded` if the tenant's quota is full and none of it can be evicted.

        Called before an image is decoded; `reserve` checks the quota again.
        """

    async def epoch(self, key: EmbeddingKey) -> Epoch:
        """Return a token for the deletions of *key* so far; called when work for it begins."""

    async def reserve(
        self,
        key: EmbeddingKey,
        facts: EmbeddingFacts,
        specs: tuple[TensorSpec, ...],
        *,
        since: Epoch | None = None,
        transient: bool = False,
    ) -> Slot:
        """Reserve memory for a new embedding; evict the least recently used ones if necessary.

        *since* is the epoch at which the work began, by default now: a key that was deleted after
        it will not become visible.  A *transient* embedding will not be published.  A tenant over
        its quota evicts embeddings of its own.  Raises `Overloaded` if the cache is full of leased
        embeddings, `QuotaExceeded` if the tenant's quota is.
        """

    def publish(self, slot: Slot) -> AbstractAsyncContextManager[Embedding]:
        """Make the written embedding visible under its key, and lease it while the block runs.

        It replaces the previous embedding of the key.  If the key has been deleted since the work
        began, the embedding is revoked: leased but not visible, and freed after the block.
        """

    async def discard(self, slot: Slot) -> None:
        """Free a slot that will not be published.

        Its memory is reused once all of its pending writes have ended, at once if there are none.
        """

    def lease(
        self,
        key: EmbeddingKey,
        *,
        renew: bool = False,
        durable: bool = False,
        after_miss: bool = False,
        image_sent: bool = False,
    ) -> AbstractAsyncContextManager[Embedding]:
        """Lease an embedding: it is neither evicted nor overwritten while the block runs.

        With *renew*, its time to live starts again.  With *durable*, the lease is granted only
        once the loss of one machine cannot lose the embedding; `CacheUnavailable` if that cannot
        be confirmed.  With *after_miss*, the caller has just had a miss for this key, and this
        lookup counts neither as a hit nor as a miss.  With *image_sent*, the caller has the image
        and could have it embedded again: then the local tier is used even if an outage hides
        deletions.  Raises `EmbeddingNotFound`.
        """

    async def delete(self, key: EmbeddingKey) -> bool:
        """Delete an embedding in all tiers, also one whose slot is being written.

        Existing leases stay valid.  Returns False if it is unknown.  Raises `CacheUnavailable` if
        other gateways may still find it.
        """

    def stats(self) -> CacheStats:
        """Return counts of entries, bytes, hits and evictions."""

    def expire(self) -> int:
        """Free expired embeddings, which are not found any more; return how many.

        Called periodically.
        """

    async def aclose(self) -> None:
        """Free all memory."""


def not_found(key: EmbeddingKey) -> EmbeddingNotFound:
    """Build the error for a miss: one text, whatever its cause."""
    return EmbeddingNotFound(
        "the embedding is unknown, has expired or was evicted; embed the image again",
        metadata={"embedding_id": key.embedding_id},
    )
