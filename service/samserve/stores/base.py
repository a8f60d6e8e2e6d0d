"""The port to the place where embeddings live."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias

from samserve.errors import EmbeddingNotFound
from samserve.memory.slot import Slot
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, StoreStats, TensorSpec

Epoch: TypeAlias = object
"""What `EmbeddingStore.epoch` gives; only stores look into it."""


class EmbeddingStore(Protocol):
    """Keeps embeddings by key, bounded in bytes; used from one event loop.

    A miss is `EmbeddingNotFound`.  An outage is `StoreUnavailable`, never a miss: a client that
    is told of a miss uploads its image again.
    """

    def check_room(self, tenant: str, specs: tuple[TensorSpec, ...]) -> None:
        """Raise `QuotaExceeded` if all that the tenant may hold is in use: nothing will make room.

        Called before an image is looked at; `reserve` asks again.
        """

    async def epoch(self, key: EmbeddingKey) -> Epoch:
        """Return what of *key* has been deleted so far; asked when work for it begins."""

    async def reserve(
        self,
        key: EmbeddingKey,
        facts: EmbeddingFacts,
        specs: tuple[TensorSpec, ...],
        *,
        since: Epoch | None = None,
        transient: bool = False,
    ) -> Slot:
        """Take memory for a new embedding, evicting what was used longest ago.

        What was deleted *since* the work for it began, which is now if that is not given, does not
        come back with it.  A *transient* one will not be published.  A tenant over its own quota
        evicts what is its own.  Raises `Overloaded` if everything that is held is in use,
        `QuotaExceeded` if that is so of what the tenant may hold.
        """

    def publish(self, slot: Slot) -> AbstractAsyncContextManager[Embedding]:
        """Make what was written visible under its key, and hold it while the block runs.

        It replaces what was there.  If the key has been deleted since the work began, it is
        revoked: held but not visible, and gone after the block.
        """

    async def discard(self, slot: Slot) -> None:
        """Free a slot that will not be published.

        Its memory is used again once all of its late writers have ended, at once if it has none.
        """

    def lease(
        self,
        key: EmbeddingKey,
        *,
        renew: bool = False,
        durable: bool = False,
        again: bool = False,
        image_sent: bool = False,
    ) -> AbstractAsyncContextManager[Embedding]:
        """Hold an embedding: it is neither evicted nor overwritten while the block runs.

        With *renew*, its time to live starts again.  With *durable*, it is found only once it is
        where the death of one machine does not lose it; `StoreUnavailable` if it cannot be brought
        there.  With *again*, the caller has just been told of a miss, and this look counts neither
        as a hit nor as another miss.  With *image_sent*, the caller has the image and could have
        it embedded again: an outage that hides deletions does not keep it from what is in memory.
        Raises `EmbeddingNotFound`.
        """

    async def delete(self, key: EmbeddingKey) -> bool:
        """Forget an embedding everywhere, also one whose slot is being written.

        Leases that are held stay valid.  False if unknown.  Raises `StoreUnavailable` if others
        may still find it.
        """

    def stats(self) -> StoreStats:
        """Count what is held."""

    def expire(self) -> int:
        """Free what has expired, which is not found any more, and count it; called now and then."""

    async def aclose(self) -> None:
        """Free everything."""


def not_found(key: EmbeddingKey) -> EmbeddingNotFound:
    """Build the error for a miss: one text, whatever its cause."""
    return EmbeddingNotFound(
        "the embedding is unknown, has expired or was evicted; embed the image again",
        metadata={"embedding_id": key.embedding_id},
    )
