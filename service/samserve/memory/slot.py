"""Memory for one embedding, written by an engine and owned by the cache."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from samserve.types import Array, Embedding, EmbeddingFacts, EmbeddingKey


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Memory for one embedding that is being written; its owner publishes or discards it.

    ``tensors`` are writable views, one for each spec, without a batch axis.  ``index`` is that of
    the slot in its arena.  An engine adds a future to ``pending_writes`` for each request without a
    response that may still write to the slot; the future is done once it cannot write any more.
    """

    key: EmbeddingKey
    facts: EmbeddingFacts
    tensors: Mapping[str, Array]
    index: int
    nbytes: int
    pending_writes: list[asyncio.Future[None]] = field(default_factory=list)

    def as_embedding(self) -> Embedding:
        """Return a view of the slot as an embedding that is never published (of a crop)."""
        return Embedding(self.tensors, self.facts, expires_at=float("inf"))
