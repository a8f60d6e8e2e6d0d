"""Free the memory of expired embeddings before it is needed."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from samserve.stores.base import EmbeddingStore
from samserve.system.background import periodic

_INTERVAL_S = 1.0


def expiring(store: EmbeddingStore) -> AbstractAsyncContextManager[None]:
    """Free what expires while the block runs."""

    async def expire() -> None:
        for _ in iter(store.expire, 0):
            await asyncio.sleep(0)  # many may expire at once; others get their turn between

    return periodic(expire, _INTERVAL_S, "freeing expired embeddings failed")
