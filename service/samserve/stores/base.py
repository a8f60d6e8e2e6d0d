"""The port to the place where embeddings live."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from samserve.types import Array, Embedding, EmbeddingFacts, EmbeddingKey, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Memory for one embedding that is being written; its owner publishes or discards it.

    ``tensors`` are writable views, one for each spec, without a batch axis.  ``index`` and
    ``offset`` say where the slot lies in its arena, for engines that are given addresses instead
    of bytes.
    """

    key: EmbeddingKey
    facts: EmbeddingFacts
    tensors: Mapping[str, Array]
    index: int
    offset: int
    nbytes: int

    def as_embedding(self) -> Embedding:
        """View what was written as an embedding that is never published (a crop's, say)."""
        return Embedding(self.tensors, self.facts, expires_at=float("inf"))


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store holds now, and how often it answered so far."""

    entries: int
    bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    evictions: int


class EmbeddingStore(Protocol):
    """Keeps embeddings by key, bounded in bytes; used from one event loop.

    A miss is `EmbeddingNotFound`.  An outage is `StoreUnavailable`, never a miss: a client that
    is told of a miss uploads its image again.
    """

    async def reserve(
        self, key: EmbeddingKey, facts: EmbeddingFacts, specs: tuple[TensorSpec, ...]
    ) -> Slot:
        """Take memory for a new embedding, evicting what was used longest ago.

        Raises `Overloaded` if everything that is held is in use.
        """
        ...

    async def publish(self, slot: Slot) -> None:
        """Make what was written visible under its key, replacing what was there."""
        ...

    async def discard(self, slot: Slot) -> None:
        """Give back a slot that will not be published; nobody may write into it any more."""
        ...

    def lease(
        self, key: EmbeddingKey, *, renew: bool = False
    ) -> AbstractAsyncContextManager[Embedding]:
        """Hold an embedding: it is neither evicted nor overwritten while the block runs.

        With *renew*, its time to live starts again.  Raises `EmbeddingNotFound`.
        """
        ...

    async def delete(self, key: EmbeddingKey) -> bool:
        """Forget an embedding at once; leases that are held stay valid.  False if unknown."""
        ...

    def stats(self) -> StoreStats:
        """Count what is held."""
        ...

    async def aclose(self) -> None:
        """Free everything."""
        ...
