"""Memory for one embedding, which engines write and stores keep."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from samserve.types import Array, Embedding, EmbeddingFacts, EmbeddingKey


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Memory for one embedding that is being written; its owner publishes or discards it.

    ``tensors`` are writable views, one for each spec, without a batch axis.  ``index`` is the
    slot's place in its arena.  An engine that loses sight of a run which may still write here adds
    a future to ``late_writers``; it ends when the run certainly writes no more.
    """

    key: EmbeddingKey
    facts: EmbeddingFacts
    tensors: Mapping[str, Array]
    index: int
    nbytes: int
    late_writers: list[asyncio.Future[None]] = field(default_factory=list)

    def as_embedding(self) -> Embedding:
        """View what was written as an embedding that is never published (a crop's, say)."""
        return Embedding(self.tensors, self.facts, expires_at=float("inf"))
